// The float32 kernels for processors with AVX-512.

#include "isa_avx512.h"

#if MMREDNET_BUILDS_AVX512
#include "kernels.h"

constexpr mmrednet::DtypeKernels mmrednet::avx512::float32_kernels = dtype_kernels<float, float>();
#else
const mmrednet::DtypeKernels mmrednet::avx512::float32_kernels = {};
#endif
