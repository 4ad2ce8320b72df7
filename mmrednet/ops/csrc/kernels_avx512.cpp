// For processors with AVX512, which dispatch asks for before anything here is called. Headers of
// the standard library come first: what they define inline is shared with files that are compiled
// for every processor.
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#define MMREDNET_BUILT 1
#else
#define MMREDNET_BUILT 0
#endif

#include "params.h"

#if MMREDNET_BUILT
#define MMREDNET_ISA avx512
// sixteen lanes are one register
#define MMREDNET_SHUFFLES
#include "kernels.h"

mmrednet::Kernels mmrednet_kernels_avx512() { return mmrednet::avx512::kernels("avx512"); }
#else
mmrednet::Kernels mmrednet_kernels_avx512() { return {}; }
#endif
