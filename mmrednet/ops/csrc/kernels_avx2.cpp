// The kernels for processors with AVX2 and FMA. native.cpp calls them only there.

// Headers of the standard library come before the pragma. Inline functions of theirs are shared
// with files that are compiled for every processor, so they must not use AVX2.
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernel_table.h"

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#pragma GCC target("avx2,fma")

#define MMREDNET_ISA avx2
#include "kernels.h"

mmrednet::KernelTable mmrednet_kernels_avx2() { return mmrednet::avx2::kernel_table("avx2"); }
#else
mmrednet::KernelTable mmrednet_kernels_avx2() { return {}; }
#endif
