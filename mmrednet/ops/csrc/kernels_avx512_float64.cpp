// The float64 kernels for processors with AVX-512.

#include "isa_avx512.h"

#if MMREDNET_BUILDS_AVX512
#include "kernels.h"

constexpr mmrednet::DtypeKernels mmrednet::avx512::float64_kernels =
    dtype_kernels<double, double>();
#else
const mmrednet::DtypeKernels mmrednet::avx512::float64_kernels = {};
#endif
