// The bfloat16 kernels for processors with AVX2 and FMA.

#include "isa_avx2.h"

#if MMREDNET_BUILDS_AVX2
#include "kernels.h"

constexpr mmrednet::DtypeKernels mmrednet::avx2::bfloat16_kernels =
    dtype_kernels<BFloat16, float>();
#else
const mmrednet::DtypeKernels mmrednet::avx2::bfloat16_kernels = {};
#endif
