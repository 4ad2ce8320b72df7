// The first lines of files with kernels for every processor that the compiler's default flags
// allow: see instruction_set.h.

#pragma once

#include "instruction_set.h"

#define MMREDNET_ISA plain
