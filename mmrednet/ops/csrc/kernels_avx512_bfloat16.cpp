// The bfloat16 kernels for processors with AVX-512.

#include "isa_avx512.h"

#if MMREDNET_BUILDS_AVX512_PAIRLESS
#include "kernels.h"

constexpr mmrednet::DtypeKernels mmrednet::avx512::bfloat16_kernels =
    dtype_kernels<BFloat16, float>();
#else
const mmrednet::DtypeKernels mmrednet::avx512::bfloat16_kernels = {};
#endif
