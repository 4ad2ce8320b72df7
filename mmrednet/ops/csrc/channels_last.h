// Channels-last maps, read where they are: vectors run along the channels of a group.

#pragma once

#include <cstdint>

#include "isa.h"
#include "params.h"
#include "simd.h"
#include "window.h"

namespace mmrednet::MMREDNET_ISA {

// where the weights of a span of outputs of one row lie: those of tap (u, t) of output x at u * row
// + t * tap + x * place
template <typename W>
struct Taps {
  const W* data;
  int64_t row, tap, place;
};

// N neighbouring channels of a group at one output; four sums hide the latency of an addition
template <typename T, typename A, int N, typename W>
inline void aggregate_one(const Problem& p, const T* value, Taps<W> taps, T* result, int64_t y,
                          int64_t x) {
  typedef typename Lanes<A, N>::Vector V;
  const Geometry& g = p.geometry;
  V s0 = {}, s1 = {}, s2 = {}, s3 = {};
  const int64_t top = y * g.stride_h - g.padding_h, left = x * g.stride_w - g.padding_w;
  int64_t u, u_end, t_begin, t_end;
  inside(top, g.dilation_h, p.height, g.kernel_h, &u, &u_end);
  inside(left, g.dilation_w, p.width, g.kernel_w, &t_begin, &t_end);
  if (t_begin >= t_end) u = u_end;
  // taps further apart than the map is wide do not meet on it
  const int64_t step = t_end - t_begin > 1 ? g.dilation_w * p.first.w : 0, next = taps.tap;
  for (; u < u_end; ++u) {
    const T* from =
        value + (top + u * g.dilation_h) * p.first.h + (left + t_begin * g.dilation_w) * p.first.w;
    const W* tap = taps.data + u * taps.row + t_begin * next;
    int64_t t = t_begin;
    for (; t + 4 <= t_end; t += 4, from += 4 * step, tap += 4 * next) {
      s0 += load<A>(tap[0]) * load_lanes<A, N>(from);
      s1 += load<A>(tap[next]) * load_lanes<A, N>(from + step);
      s2 += load<A>(tap[2 * next]) * load_lanes<A, N>(from + 2 * step);
      s3 += load<A>(tap[3 * next]) * load_lanes<A, N>(from + 3 * step);
    }
    if (t < t_end) s0 += load<A>(tap[0]) * load_lanes<A, N>(from);
    if (t + 1 < t_end) s1 += load<A>(tap[next]) * load_lanes<A, N>(from + step);
    if (t + 2 < t_end) s2 += load<A>(tap[2 * next]) * load_lanes<A, N>(from + 2 * step);
  }
  store_lanes<T, A, N>(result, (s0 + s1) + (s2 + s3));
}

// as many neighbouring outputs as share most of what they load
constexpr int kTogether = 6;

// Sixteen channels of kTogether outputs, all of whose columns lie on the map: a column is loaded
// once for all of them.
template <typename T, typename A, int kKernel, typename W>
inline void aggregate_together(const Problem& p, const T* value, Taps<W> taps, T* result, int64_t y,
                               int64_t x) {
  typedef typename Lanes<A, 16>::Vector V;
  const Geometry& g = p.geometry;
  V s[kTogether];
  for (int i = 0; i < kTogether; ++i) s[i] = V{};
  const int64_t top = y * g.stride_h - g.padding_h;
  int64_t u, u_end;
  inside(top, g.dilation_h, p.height, g.kernel_h, &u, &u_end);
  for (; u < u_end; ++u) {
    const T* from = value + (top + u * g.dilation_h) * p.first.h + (x - g.padding_w) * p.first.w;
    const W* row = taps.data + u * taps.row;
#pragma GCC unroll 16
    for (int column = 0; column < kKernel + kTogether - 1; ++column) {
      const V seen = load_lanes<A, 16>(from + column * p.first.w);
#pragma GCC unroll 16
      for (int i = 0; i < kTogether; ++i) {
        const int t = column - i;
        if (t >= 0 && t < kKernel) s[i] += load<A>(row[t * taps.tap + i * taps.place]) * seen;
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kTogether; ++i) store_lanes<T, A, 16>(result + i * p.result.w, s[i]);
}

// all channels of one output: as many as possible of the widest kind at once
template <typename T, typename A, typename W>
inline void aggregate_all(const Problem& p, const T* value, Taps<W> taps, T* result, int64_t y,
                          int64_t x, int64_t d) {
  for (; d + 16 <= p.channels; d += 16)
    aggregate_one<T, A, 16>(p, value + d, taps, result + d, y, x);
  for (; d + 4 <= p.channels; d += 4) aggregate_one<T, A, 4>(p, value + d, taps, result + d, y, x);
  for (; d < p.channels; ++d) aggregate_one<T, A, 1>(p, value + d, taps, result + d, y, x);
}

// outputs [x, x_end) of row y of one group; `taps` and `result` begin at output x
template <typename T, typename A, typename W>
void aggregate_span(const Problem& p, const T* value, Taps<W> taps, T* result, int64_t y, int64_t x,
                    int64_t x_end) {
  const Geometry& g = p.geometry;
  const int64_t kernel = g.kernel_w;
  const bool share =
      g.stride_w == 1 && g.dilation_w == 1 && (kernel == 3 || kernel == 5 || kernel == 7);
  while (x < x_end) {
    const int64_t left = x - g.padding_w;
    int64_t step = 1, d = 0;
    if (share && x + kTogether <= x_end && left >= 0 && left + kernel + kTogether - 1 <= p.width) {
      step = kTogether;
      for (; d + 16 <= p.channels; d += 16) {
        if (kernel == 7)
          aggregate_together<T, A, 7>(p, value + d, taps, result + d, y, x);
        else if (kernel == 5)
          aggregate_together<T, A, 5>(p, value + d, taps, result + d, y, x);
        else
          aggregate_together<T, A, 3>(p, value + d, taps, result + d, y, x);
      }
    }
    for (int64_t i = 0; i < step; ++i) {
      aggregate_all<T, A>(p, value, taps, result, y, x + i, d);
      taps.data += taps.place;
      result += p.result.w;
    }
    x += step;
  }
}

// the outputs that see one place of the map along one axis, and through which tap
struct Hits {
  int64_t count, tap[kMaxTaps], output[kMaxTaps];

  void find(int64_t place, int64_t kernel, int64_t stride, int64_t dilation, int64_t padding,
            int64_t outputs) {
    count = 0;
    for (int64_t t = 0; t < kernel; ++t) {
      const int64_t from = place + padding - t * dilation;
      if (from < 0 || (stride > 1 && from % stride)) continue;
      const int64_t at = stride > 1 ? from / stride : from;
      if (at >= outputs) continue;
      tap[count] = t;
      output[count++] = at;
    }
  }
};

template <typename T, typename A, int N>
inline void scatter_channels(const Problem& p, const T* grad, const T* weight, T* result,
                             const Hits& rows, const Hits& columns) {
  typedef typename Lanes<A, N>::Vector V;
  const View &q = p.first, &w = p.second;
  V s0 = {}, s1 = {};
  for (int64_t i = 0; i < rows.count; ++i) {
    const T* line = grad + rows.output[i] * q.h;
    const T* taps = weight + rows.tap[i] * p.geometry.kernel_w * w.c + rows.output[i] * w.h;
    int64_t j = 0;
    for (; j + 2 <= columns.count; j += 2) {
      s0 += load<A>(taps[columns.tap[j] * w.c + columns.output[j] * w.w]) *
            load_lanes<A, N>(line + columns.output[j] * q.w);
      s1 += load<A>(taps[columns.tap[j + 1] * w.c + columns.output[j + 1] * w.w]) *
            load_lanes<A, N>(line + columns.output[j + 1] * q.w);
    }
    if (j < columns.count)
      s0 += load<A>(taps[columns.tap[j] * w.c + columns.output[j] * w.w]) *
            load_lanes<A, N>(line + columns.output[j] * q.w);
  }
  store_lanes<T, A, N>(result, s0 + s1);
}

// all channels of one position
template <typename T, typename A>
void scatter_pixel(const Problem& p, const T* first, const T* second, T* out, const Hits& rows,
                   const Hits& columns) {
  int64_t d = 0;
  for (; d + 16 <= p.channels; d += 16)
    scatter_channels<T, A, 16>(p, first + d, second, out + d, rows, columns);
  for (; d + 4 <= p.channels; d += 4)
    scatter_channels<T, A, 4>(p, first + d, second, out + d, rows, columns);
  for (; d < p.channels; ++d)
    scatter_channels<T, A, 1>(p, first + d, second, out + d, rows, columns);
}

}  // namespace mmrednet::MMREDNET_ISA
