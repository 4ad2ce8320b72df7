// For every processor that the compiler's defaults allow.
#include "params.h"

#define MMREDNET_NAMESPACE mmrednet_plain
#include "kernels.h"

mmrednet::Kernels mmrednet_kernels_plain() { return mmrednet_plain::kernels("plain"); }
