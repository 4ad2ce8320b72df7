// The kernels for processors with AVX-512. native.cpp calls them only there.

// Headers of the standard library come before the pragma. Inline functions of theirs are shared
// with files that are compiled for every processor, so they must not use AVX-512.
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernel_table.h"

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
// without prefer-vector-width, GCC would not use registers of 512 bits
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")

// see transpose.h
#define MMREDNET_SHUFFLES
#define MMREDNET_ISA avx512
#include "kernels.h"

mmrednet::KernelTable mmrednet_kernels_avx512() { return mmrednet::avx512::kernel_table("avx512"); }
#else
mmrednet::KernelTable mmrednet_kernels_avx512() { return {}; }
#endif
