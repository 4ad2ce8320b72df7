// The first lines of files with kernels for processors with AVX2 and FMA: see instruction_set.h.

#pragma once

#include "instruction_set.h"

#if MMREDNET_BUILDS_AVX2
#pragma GCC target("avx2,fma")
#endif
#define MMREDNET_ISA avx2
