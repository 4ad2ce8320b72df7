// For every processor that the compiler's defaults allow.
#include "params.h"

#define MMREDNET_ISA plain
#include "kernels.h"

mmrednet::Kernels mmrednet_kernels_plain() { return mmrednet::plain::kernels("plain"); }
