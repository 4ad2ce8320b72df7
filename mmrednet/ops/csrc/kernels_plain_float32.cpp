// The float32 kernels for every processor.

#include "isa_plain.h"

#if MMREDNET_BUILDS_PLAIN
#include "kernels.h"

constexpr mmrednet::DtypeKernels mmrednet::plain::float32_kernels = dtype_kernels<float, float>();
#else
const mmrednet::DtypeKernels mmrednet::plain::float32_kernels = {};
#endif
