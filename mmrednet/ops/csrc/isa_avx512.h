// The first lines of files with kernels for processors with AVX-512: see instruction_set.h.

#pragma once

#include "instruction_set.h"

#if MMREDNET_BUILDS_AVX512
// without prefer-vector-width, GCC would not use registers of 512 bits
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
// see transpose.h
#define MMREDNET_SHUFFLES
#endif
#define MMREDNET_ISA avx512
