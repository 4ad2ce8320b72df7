// How 16 neighbouring outputs load what they see of a packed row, where windows may be shifted.

#pragma once

#ifdef MMREDNET_SHUFFLES
#include <immintrin.h>
#endif

#include <cstdint>

#include "integers.h"
#include "isa.h"
#include "simd.h"

namespace mmrednet::MMREDNET_ISA {

// Outputs from x on that see neighbouring columns by each tap.
template <typename A>
struct InnerLanes {
  int64_t x;

  // `row` is a packed row, from where the columns of a tap begin.
  Simd<A> load(const A* row) const { return load_simd<A>(row + x); }
};

// Outputs from x on, some of which are outside of the interior [first, last]. They see the columns
// of the nearest output in it.
template <typename A>
struct BorderLanes {
  int64_t x, first, last;
  // the numbers of the outputs
  Simd<A> outputs;

  BorderLanes(int64_t begin, int64_t first_output, int64_t last_output)
      : x(begin), first(first_output), last(last_output) {
    for (int i = 0; i < kSimdWidth; ++i) outputs[i] = static_cast<A>(x + i);
  }

  Simd<A> load(const A* row) const {
    Simd<A> columns = load_simd<A>(row + x);
    // most blocks are at one end of the row
    if (x < first) {
      const Simd<A> left = row[first] - Simd<A>{};
      columns = outputs < static_cast<A>(first) ? left : columns;
    }
    if (x + kSimdWidth - 1 > last) {
      const Simd<A> right = row[last] - Simd<A>{};
      columns = outputs > static_cast<A>(last) ? right : columns;
    }
    return columns;
  }
};

#ifdef MMREDNET_SHUFFLES
// One instruction brings the columns of 16 floats, or pairs, to their outputs.
template <>
struct BorderLanes<float> {
  // Where the vector begins that is loaded. All outputs see one of its columns, and it ends within
  // the packed row.
  int64_t column;
  // the column in the vector that each output sees
  Vector<int32_t, kSimdWidth> lanes;

  BorderLanes(int64_t x, int64_t first, int64_t last)
      : column(int_max(int_min(x, last), first - kSimdWidth + 1)) {
    for (int i = 0; i < kSimdWidth; ++i)
      lanes[i] = static_cast<int32_t>(int_max(int_min(x + i, last), first) - column);
  }

  Simd<float> load(const float* row) const {
    const auto vector = (__m512)load_simd<float>(row + column);
    // the form with a mask, because GCC 12 warns of the other one
    return (Simd<float>)_mm512_maskz_permutexvar_ps(0xffff, (__m512i)lanes, vector);
  }
};
#endif

}  // namespace mmrednet::MMREDNET_ISA
