// The bfloat16 kernels for processors with AVX512-BF16.

#include "isa_avx512bf16.h"

#if MMREDNET_BUILDS_AVX512BF16
#include "kernels.h"

constexpr mmrednet::DtypeKernels mmrednet::avx512bf16::bfloat16_kernels =
    dtype_kernels<BFloat16, float>();
#else
const mmrednet::DtypeKernels mmrednet::avx512bf16::bfloat16_kernels = {};
#endif
