// The instruction set that a file is compiled for.
//
// The kernels are templates in a namespace that is named after it. Without that, the linker would
// take the same function of two instruction sets for one.

#pragma once

#ifndef MMREDNET_ISA
#error "define MMREDNET_ISA as avx512bf16, avx512, avx2 or plain, as the kernels_*.cpp do"
#endif
