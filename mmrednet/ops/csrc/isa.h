// The instruction set that a file is compiled for: the kernels are templates in a namespace named
// after it, because the same function compiled for two instruction sets must not have one name.

#pragma once

#ifndef MMREDNET_ISA
#error "define MMREDNET_ISA as avx512, avx2 or plain, as the kernels_*.cpp do"
#endif
