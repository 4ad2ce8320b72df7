// The float64 kernels for processors with AVX2 and FMA.

#include "isa_avx2.h"

#if MMREDNET_BUILDS_AVX2
#include "kernels.h"

constexpr mmrednet::DtypeKernels mmrednet::avx2::float64_kernels = dtype_kernels<double, double>();
#else
const mmrednet::DtypeKernels mmrednet::avx2::float64_kernels = {};
#endif
