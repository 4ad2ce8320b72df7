// Logits: the relation of the queries of a row to the keys of their neighbours.

#pragma once

#include <cstdint>

#include "integers.h"
#include "isa.h"
#include "matrix.h"
#include "packed_rows.h"
#include "params.h"
#include "simd.h"

namespace mmrednet::MMREDNET_ISA {

// Logits of 16 outputs, from x on, and of N neighbouring taps of row `row` of the map, from t on.
// `queries` has a row for each channel, `logits` one for each of the taps.
template <Relation kRelation, typename T, typename A, int N>
inline void correlate_tile(const PackedRows<T, A>& keys, Matrix<const A> queries, int64_t row,
                           int64_t x, int64_t t, Matrix<A> logits) {
  Simd<A> sums[N];
  int64_t columns[N];
  for (int n = 0; n < N; ++n) {
    sums[n] = Simd<A>{};
    columns[n] = keys.tap_offset(t + n) + x;
  }
  for (int64_t d = 0; d < keys.p.channels; ++d) {
    const Simd<A> query = load_simd<A>(queries.data + d * queries.pitch + x);
    const A* key = keys.row(row, d);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      if constexpr (kRelation == kProduct) {
        sums[n] += query * load_simd<A>(key + columns[n]);
      } else {
        const Simd<A> difference = query - load_simd<A>(key + columns[n]);
        sums[n] -= difference < 0 ? -difference : difference;
      }
    }
  }
  for (int n = 0; n < N; ++n) store_simd<A>(logits.data + n * logits.pitch + x, sums[n]);
}

// The logits of all taps of one row of the window.
template <Relation kRelation, typename T, typename A>
inline void correlate_window_row(const PackedRows<T, A>& keys, Matrix<const A> queries, int64_t row,
                                 Matrix<A> logits) {
  const int64_t taps = keys.p.window.kernel_w;
  for (int64_t x = 0; x < keys.p.out_width; x += kSimdWidth) {
    // seven taps are a row of the common 7x7 window, and enough independent sums to hide latency
    int64_t t = 0;
    for (; t + 7 <= taps; t += 7)
      correlate_tile<kRelation, T, A, 7>(keys, queries, row, x, t, logits.from(t, 0));
    for (; t + 3 <= taps; t += 3)
      correlate_tile<kRelation, T, A, 3>(keys, queries, row, x, t, logits.from(t, 0));
    for (; t < taps; ++t)
      correlate_tile<kRelation, T, A, 1>(keys, queries, row, x, t, logits.from(t, 0));
  }
}

// The logits of row y of the outputs: a matrix row for each tap, zeros for taps in rows outside the
// map. Rows are written up to a multiple of the SIMD width; what lies behind the last output is of
// no use.
template <typename T, typename A, Relation kRelation = kProduct>
void correlate_row(PackedRows<T, A>& keys, Matrix<const A> queries, Matrix<A> logits, int64_t y) {
  const LocalParams& p = keys.p;
  const Window& window = p.window;
  const int64_t length = round_up(p.out_width);
  for (int64_t u = 0; u < window.kernel_h; ++u) {
    const int64_t row = y * window.stride_h + u * window.dilation_h - window.padding_h;
    const Matrix<A> row_logits = logits.from(u * window.kernel_w, 0);
    if (row >= 0 && row < p.height) {
      keys.pack(row);
      correlate_window_row<kRelation>(keys, queries, row, row_logits);
      continue;
    }
    for (int64_t t = 0; t < window.kernel_w; ++t)
      for (int64_t x = 0; x < length; ++x) row_logits.data[t * row_logits.pitch + x] = 0;
  }
}

}  // namespace mmrednet::MMREDNET_ISA
