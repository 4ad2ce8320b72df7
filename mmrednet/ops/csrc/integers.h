// Integer arithmetic that sizes are computed with.
//
// Functions here and in workspace.h are static: each file gets its own copy, compiled for its own
// instruction set. With external linkage the linker would keep one copy, perhaps the AVX-512 one,
// and processors without AVX-512 would run it too.

#pragma once

#include <cstdint>

namespace mmrednet {

// Outputs that one SIMD vector of the kernels holds: one AVX-512 register of floats. With narrower
// registers the compiler splits it into several.
constexpr int kSimdWidth = 16;

static inline int64_t int_min(int64_t a, int64_t b) { return a < b ? a : b; }

static inline int64_t int_max(int64_t a, int64_t b) { return a > b ? a : b; }

static inline int64_t ceil_div(int64_t dividend, int64_t divisor) {
  return (dividend + divisor - 1) / divisor;
}

// The next multiple of the SIMD width: kernels compute whole vectors.
static inline int64_t round_up(int64_t width) { return ceil_div(width, kSimdWidth) * kSimdWidth; }

}  // namespace mmrednet
