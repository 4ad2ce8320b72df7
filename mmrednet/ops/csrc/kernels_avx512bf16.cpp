// The bfloat16 kernels for processors with AVX512-BF16. native.cpp calls them only there.

// Headers of the standard library come before the pragma. Inline functions of theirs are shared
// with files that are compiled for every processor, so they must not use AVX-512.
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernel_table.h"

// GCC 11 is the first that can ask a processor for this instruction set
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && __GNUC__ >= 11
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl")
#pragma GCC target("avx2,fma,prefer-vector-width=512")

// see transpose.h and simd_pairs.h
#define MMREDNET_SHUFFLES
#define MMREDNET_BF16_DOT
#define MMREDNET_ISA avx512bf16
#include "kernels.h"

mmrednet::KernelTable mmrednet_kernels_avx512bf16() {
  // kernels of other dtypes gain nothing from these instructions
  mmrednet::KernelTable table = mmrednet_kernels_avx512();
  table.name = "avx512bf16";
  table.bfloat16 = mmrednet::avx512bf16::dtype_kernels<mmrednet::avx512bf16::BFloat16, float>();
  return table;
}
#else
mmrednet::KernelTable mmrednet_kernels_avx512bf16() { return {}; }
#endif
