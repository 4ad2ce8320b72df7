// Mean and variance of the features of vector attention, or of its hidden features.
//
// A strip sums x - s and (x - s)^2 with s the mean of its first tile. This loses no digits, as the
// plain sums of x and x^2 would where the mean is large. Strips are combined in float64.

#pragma once

#include <cstdint>

#include "integers.h"
#include "isa.h"
#include "matrix.h"
#include "simd.h"
#include "vector_features.h"
#include "vector_params.h"
#include "vector_strip.h"

namespace mmrednet::MMREDNET_ISA {

template <typename A>
inline A sum_lanes(Simd<A> x) {
  A sum = 0;
  for (int n = 0; n < kSimdWidth; ++n) sum += x[n];
  return sum;
}

template <typename T, typename A>
struct StatisticsTile : FeatureTile<T, A> {
  using Base = FeatureTile<T, A>;
  using Base::Base;
  using Base::buffers;
  using Base::memory;
  using Base::p;
  using Base::pointers;
  using Base::taps;
  using Base::vector_count;
  using Base::vectors;

  int64_t rows() const { return p.has_hidden ? p.hidden : p.features; }
  // of each row: shift, and vectors of sums of x - shift and of its square
  A* shifts() const { return memory + buffers.statistics; }
  A* sums() const { return shifts() + rows(); }
  A* squares() const { return sums() + rows() * kSimdWidth; }

  // Vector j of columns holds outputs of this vector of the tile.
  const Lanes<A>& lanes_of(int64_t j) const { return vectors[p.patchwise ? j : 0].lanes; }

  // Takes the mean of the first tile of a strip as the shift.
  void set_shifts(Matrix<const A> x, int64_t first_row) {
    int64_t count = 0;
    for (int64_t j = 0; j * kSimdWidth < x.columns; ++j) count += lanes_of(j).count;
    for (int64_t i = 0; i < x.rows; ++i) {
      Simd<A> sum = {};
      for (int64_t j = 0; j * kSimdWidth < x.columns; ++j)
        sum += valid_lanes<A>(lanes_of(j)) * load_simd<A>(x.data + i * x.pitch + j * kSimdWidth);
      shifts()[first_row + i] = sum_lanes<A>(sum) / count;
    }
  }

  void add(Matrix<const A> x, int64_t first_row) {
    for (int64_t i = 0; i < x.rows; ++i) {
      const A shift = shifts()[first_row + i];
      A *sum_data = sums() + (first_row + i) * kSimdWidth,
        *square_data = squares() + (first_row + i) * kSimdWidth;
      Simd<A> sum = load_simd<A>(sum_data), square = load_simd<A>(square_data);
      for (int64_t j = 0; j * kSimdWidth < x.columns; ++j) {
        const Simd<A> element = load_simd<A>(x.data + i * x.pitch + j * kSimdWidth);
        const Simd<A> difference = valid_lanes<A>(lanes_of(j)) * (element - shift);
        sum += difference;
        square += difference * difference;
      }
      store_simd<A>(sum_data, sum);
      store_simd<A>(square_data, square);
    }
  }

  void take(Matrix<const A> x, int64_t first_row, bool is_first) {
    if (is_first) set_shifts(x, first_row);
    add(x, first_row);
  }

  void run_pair_tile(bool is_first) {
    for (int64_t first = 0; first < taps; first += p.chunk) {
      const int64_t last = int_min(first + p.chunk, taps), columns = (last - first) * kSimdWidth;
      const Matrix<A> features = {memory + buffers.features, columns, p.features, columns};
      if (p.has_hidden) {
        const Matrix<A> hidden = {memory + buffers.hidden, columns, p.hidden, columns};
        Base::pair_hidden(first, last, features, hidden);
        take(hidden, 0, is_first && first == 0);
      } else {
        Base::template pair_features<false>(first, last, features);
        take(features, 0, is_first && first == 0);
      }
    }
  }

  void run_patch_tile(bool is_first) {
    const int64_t columns = Base::columns();
    if (p.has_hidden) {
      const Matrix<A> hidden = {memory + buffers.hidden, columns, p.hidden, columns};
      Base::patch_hidden(hidden);
      take(hidden, 0, is_first);
      return;
    }
    for (int64_t first = 0; first < p.features; first += p.chunk) {
      const int64_t last = int_min(first + p.chunk, p.features);
      const Matrix<A> features = {memory + buffers.features, columns, last - first, columns};
      Base::template patch_features<false>(first, last, features);
      take(features, first, is_first);
    }
  }

  // Stores mean and sum of squared deviations of a strip.
  void run_strip(int64_t index) {
    Base::begin_strip(index);
    for (int64_t i = 0; i < 2 * rows() * kSimdWidth; ++i) sums()[i] = 0;
    for (int64_t tile = 0; tile < Base::tiles(); ++tile) {
      Base::begin_tile(tile);
      if (p.patchwise)
        run_patch_tile(tile == 0);
      else
        run_pair_tile(tile == 0);
    }
    const double count = static_cast<double>(Base::strip.rows * p.out_width) *
                         static_cast<double>(p.patchwise ? 1 : taps);
    for (int64_t i = 0; i < rows(); ++i) {
      double sum = 0, square = 0;
      for (int n = 0; n < kSimdWidth; ++n) {
        sum += static_cast<double>(sums()[i * kSimdWidth + n]);
        square += static_cast<double>(squares()[i * kSimdWidth + n]);
      }
      pointers.means[index * rows() + i] = static_cast<double>(shifts()[i]) + sum / count;
      const double deviation = square - sum * sum / count;
      pointers.deviations[index * rows() + i] = deviation > 0 ? deviation : 0;
    }
  }
};

}  // namespace mmrednet::MMREDNET_ISA
