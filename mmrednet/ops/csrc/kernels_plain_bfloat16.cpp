// The bfloat16 kernels for every processor.

#include "isa_plain.h"

#if MMREDNET_BUILDS_PLAIN
#include "kernels.h"

constexpr mmrednet::DtypeKernels mmrednet::plain::bfloat16_kernels =
    dtype_kernels<BFloat16, float>();
#else
const mmrednet::DtypeKernels mmrednet::plain::bfloat16_kernels = {};
#endif
