// The float64 kernels for every processor.

#include "isa_plain.h"

#if MMREDNET_BUILDS_PLAIN
#include "kernels.h"

constexpr mmrednet::DtypeKernels mmrednet::plain::float64_kernels = dtype_kernels<double, double>();
#else
const mmrednet::DtypeKernels mmrednet::plain::float64_kernels = {};
#endif
