// Logits: what the queries of a row meet at each of their neighbours.

#pragma once

#include <cstdint>
#include <cstring>

#include "isa.h"
#include "packed_rows.h"
#include "params.h"
#include "simd.h"

namespace mmrednet::MMREDNET_ISA {

// sixteen outputs and N neighbouring taps of row `row` of the map
template <typename A, int N, typename R>
inline void correlate_tile(const Problem& p, const R& keys, const A* query, int64_t pitch,
                           int64_t row, int64_t x, int64_t t, A* logits) {
  typedef typename Lanes<A, 16>::Vector V;
  V s[N];
  int64_t columns[N];
  for (int n = 0; n < N; ++n) {
    s[n] = V{};
    columns[n] = keys.column(t + n) + x;
  }
  for (int64_t d = 0; d < p.channels; ++d) {
    const V factor = load_lanes<A, 16>(query + d * pitch + x);
    const A* line = keys.line(row, d);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) s[n] += factor * load_lanes<A, 16>(line + columns[n]);
  }
  for (int n = 0; n < N; ++n) std::memcpy(logits + n * pitch + x, &s[n], sizeof(V));
}

// All taps of row y of the outputs, a line for each: zero for those outside the map. What lies
// between the end of the row and the next multiple of sixteen is written too.
template <typename T, typename A>
void correlate_row(const Problem& p, Rows<T, A>& keys, const A* queries, int64_t pitch, A* logits,
                   int64_t y) {
  const Geometry& g = p.geometry;
  const int64_t length = padded(p.out_width);
  for (int64_t u = 0; u < g.kernel_h; ++u, logits += g.kernel_w * pitch) {
    const int64_t row = y * g.stride_h + u * g.dilation_h - g.padding_h;
    if (row < 0 || row >= p.height) {
      for (int64_t t = 0; t < g.kernel_w; ++t)
        for (int64_t x = 0; x < length; ++x) logits[t * pitch + x] = 0;
      continue;
    }
    keys.hold(row);
    for (int64_t x = 0; x < p.out_width; x += 16) {
      int64_t t = 0;
      for (; t + 7 <= g.kernel_w; t += 7)
        correlate_tile<A, 7>(p, keys, queries, pitch, row, x, t, logits + t * pitch);
      for (; t + 3 <= g.kernel_w; t += 3)
        correlate_tile<A, 3>(p, keys, queries, pitch, row, x, t, logits + t * pitch);
      for (; t < g.kernel_w; ++t)
        correlate_tile<A, 1>(p, keys, queries, pitch, row, x, t, logits + t * pitch);
    }
  }
}

}  // namespace mmrednet::MMREDNET_ISA
