// Which instruction sets kernels are built for.
//
// Each kernels_*.cpp has the kernels for one dtype and one instruction set. All are built, unless
// MMREDNET_ONLY_ISA limits them to those that one processor uses: 0 plain, 1 AVX2, 2 AVX-512,
// 3 AVX-512 with AVX512-BF16. The others are then empty tables.
//
// The headers of the standard library that kernels use are included here, before any pragma that
// chooses an instruction set. Inline functions of theirs are shared with files that are compiled
// for every processor, so they must not use its instructions.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernel_table.h"

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#define MMREDNET_HAS_TARGETS 1
#else
// the compiler has no such pragma, or the processor no such instructions
#define MMREDNET_HAS_TARGETS 0
#endif

// GCC 11 is the first that can ask a processor for AVX512-BF16
#define MMREDNET_HAS_AVX512BF16 (MMREDNET_HAS_TARGETS && __GNUC__ >= 11)

#ifdef MMREDNET_ONLY_ISA
#define MMREDNET_WANTS(isa) (MMREDNET_ONLY_ISA == (isa))
#else
#define MMREDNET_WANTS(isa) 1
#endif

#define MMREDNET_BUILDS_PLAIN (MMREDNET_WANTS(0) || !MMREDNET_HAS_TARGETS)
#define MMREDNET_BUILDS_AVX2 (MMREDNET_WANTS(1) && MMREDNET_HAS_TARGETS)
// of float32 and float64; processors with AVX512-BF16 use these too
#define MMREDNET_BUILDS_AVX512 ((MMREDNET_WANTS(2) || MMREDNET_WANTS(3)) && MMREDNET_HAS_TARGETS)
// of bfloat16
#define MMREDNET_BUILDS_AVX512_PAIRLESS \
  (MMREDNET_HAS_TARGETS && (MMREDNET_WANTS(2) || (MMREDNET_WANTS(3) && !MMREDNET_HAS_AVX512BF16)))
#define MMREDNET_BUILDS_AVX512BF16 (MMREDNET_WANTS(3) && MMREDNET_HAS_AVX512BF16)
