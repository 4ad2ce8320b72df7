// For processors with AVX2, which dispatch asks for before anything here is called. Headers of the
// standard library come first: what they define inline is shared with files that are compiled for
// every processor.
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#pragma GCC target("avx2,fma")
#define MMREDNET_BUILT 1
#else
#define MMREDNET_BUILT 0
#endif

#include "params.h"

#if MMREDNET_BUILT
#define MMREDNET_ISA avx2
#include "kernels.h"

mmrednet::Kernels mmrednet_kernels_avx2() { return mmrednet::avx2::kernels("avx2"); }
#else
mmrednet::Kernels mmrednet_kernels_avx2() { return {}; }
#endif
