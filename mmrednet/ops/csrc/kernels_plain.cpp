// The kernels for every processor that the compiler's default flags allow.

#include "kernel_table.h"

#define MMREDNET_ISA plain
#include "kernels.h"

mmrednet::KernelTable mmrednet_kernels_plain() { return mmrednet::plain::kernel_table("plain"); }
