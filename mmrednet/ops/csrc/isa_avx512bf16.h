// The first lines of files with kernels for processors with AVX512-BF16: see instruction_set.h.

#pragma once

#include "instruction_set.h"

#if MMREDNET_BUILDS_AVX512BF16
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl")
#pragma GCC target("avx2,fma,prefer-vector-width=512")
// see transpose.h and simd_pairs.h
#define MMREDNET_SHUFFLES
#define MMREDNET_BF16_DOT
#endif
#define MMREDNET_ISA avx512bf16
