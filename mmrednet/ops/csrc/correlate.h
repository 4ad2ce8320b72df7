// The relations of the queries of a row to the keys of their neighbours.

#pragma once

#include <cstdint>
#include <type_traits>

#include "integers.h"
#include "isa.h"
#include "matrix.h"
#include "packed_rows.h"
#include "params.h"
#include "simd.h"
#include "simd_pairs.h"
#include "transpose.h"

namespace mmrednet::MMREDNET_ISA {

// Adds the relations of 16 outputs to N neighbouring taps of row `row` of the map, from t on.
// `queries` has a row for each channel or pair of channels of the keys, and begins at the outputs.
template <Relation kRelation, typename T, typename A, int N, Packing kPacking, typename Lanes>
inline void add_relations(const PackedRows<T, A, kPacking>& keys, const Lanes& lanes,
                          Matrix<const A> queries, int64_t row, int64_t t, Simd<A>* sums) {
  int64_t offsets[N];
  for (int n = 0; n < N; ++n) offsets[n] = keys.tap_offset(t + n);
  for (int64_t d = 0; d < keys.channels; ++d) {
    const Simd<A> query = load_simd<A>(queries.data + d * queries.pitch);
    const A* key = keys.row(row, d);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const Simd<A> column = lanes.load(key + offsets[n]);
      if constexpr (kPacking == kChannelPairs) {
        sums[n] = dot_pairs<A>(sums[n], query, column);
      } else if constexpr (kRelation == kProduct) {
        sums[n] += query * column;
      } else {
        const Simd<A> difference = query - column;
        sums[n] -= difference < 0 ? -difference : difference;
      }
    }
  }
}

// Calls `run` with a number of taps, as a type, and the first of them, for all taps of one row of
// the window. Seven are a row of the common 7x7 window, and enough independent sums to hide
// latency.
template <typename Run>
inline void for_taps(int64_t taps, Run run) {
  int64_t t = 0;
  for (; t + 7 <= taps; t += 7) run(std::integral_constant<int, 7>(), t);
  for (; t + 3 <= taps; t += 3) run(std::integral_constant<int, 3>(), t);
  for (; t < taps; ++t) run(std::integral_constant<int, 1>(), t);
}

// Packs a row of queries, or of what else is multiplied with keys of this packing.
template <Packing kPacking, typename T, typename A>
inline void pack_queries(Matrix<A> to, const T* source, int64_t channels, int64_t channel_stride,
                         int64_t output_stride) {
  if constexpr (kPacking == kChannelPairs)
    pack_pairs<T, A>(to, source, channels, channel_stride, output_stride);
  else
    pack_matrix<T, A>(to, source, channel_stride, output_stride);
}

// The products of all taps of one row of the window.
template <typename T, typename A, Packing kPacking>
inline void correlate_window_row(const PackedRows<T, A, kPacking>& keys, Matrix<const A> queries,
                                 int64_t row, Matrix<A> logits) {
  for (int64_t x = 0; x < keys.p.out_width; x += kSimdWidth)
    keys.with_lanes(x, [&](const auto& lanes) {
      for_taps(keys.p.window.kernel_w, [&](auto count, int64_t t) {
        Simd<A> sums[count] = {};
        add_relations<kProduct, T, A, count>(keys, lanes, queries.from(0, x), row, t, sums);
        for (int n = 0; n < count; ++n)
          store_simd<A>(logits.data + (t + n) * logits.pitch + x, sums[n]);
      });
    });
}

// The products of row y of the outputs: a matrix row for each tap, zeros for taps in rows outside
// the map. Rows are written up to a multiple of the SIMD width; what lies behind the last output is
// of no use.
template <typename T, typename A, Packing kPacking>
void correlate_row(PackedRows<T, A, kPacking>& keys, Matrix<const A> queries, Matrix<A> logits,
                   int64_t y) {
  const LocalParams& p = keys.p;
  const Window& window = p.window;
  const int64_t length = round_up(p.out_width), top = first_row(p, y);
  for (int64_t u = 0; u < window.kernel_h; ++u) {
    const int64_t row = top + u * window.dilation_h;
    const Matrix<A> row_logits = logits.from(u * window.kernel_w, 0);
    if (row >= 0 && row < p.height) {
      keys.pack(row);
      correlate_window_row(keys, queries, row, row_logits);
      continue;
    }
    for (int64_t t = 0; t < window.kernel_w; ++t)
      for (int64_t x = 0; x < length; ++x) row_logits.data[t * row_logits.pitch + x] = 0;
  }
}

}  // namespace mmrednet::MMREDNET_ISA
