// Maps that are packed row by row: vectors run along the width.

#pragma once

#include <cstdint>
#include <cstring>

#include "isa.h"
#include "params.h"
#include "simd.h"
#include "transpose.h"
#include "window.h"

namespace mmrednet::MMREDNET_ISA {

// copy numbers of one row, with zeros around them
template <typename T, typename A>
inline void pack_line(A* to, int64_t length, int64_t left, const T* from, int64_t step,
                      int64_t count) {
  if (count > length - left) count = length - left;
  for (int64_t i = 0; i < left; ++i) to[i] = 0;
  if (step == 1)
    for (int64_t i = 0; i < count; ++i) to[left + i] = load<A>(from[i]);
  else
    for (int64_t i = 0; i < count; ++i) to[left + i] = load<A>(from[i * step]);
  for (int64_t i = left + count; i < length; ++i) to[i] = 0;
}

// Rows of a map of one group, copied so that every tap of sixteen outputs is one load: zeros stand
// for what lies outside, and columns that outputs of one stride see through one tap lie together.
// Taps share what they see, except by_tap().
template <typename T, typename A>
struct Rows {
  const Problem& p;
  const View& view;
  // in memory that outlives this object: the address of the group that is held, and the number of
  // the row in each slot
  int64_t *group, *held;
  const T* data;
  A* packed;
  int64_t slots, phase, pitch;
  bool by_tap;

  // Nothing is held in these pieces of memory: all ones are no address, while that of an empty map
  // is zero.
  static void forget(char* memory, int64_t pieces, int64_t bytes) {
    for (int64_t i = 0; i < pieces; ++i) std::memset(memory + i * bytes, 0xff, sizeof(int64_t));
  }

  Rows(const Problem& problem, const View& v, char* memory, const T* group_data)
      : p(problem),
        view(v),
        group(reinterpret_cast<int64_t*>(memory)),
        held(group + 1),
        data(group_data) {
    slots = mmrednet::slots(p);
    by_tap = mmrednet::by_tap(p);
    phase = by_tap ? padded(p.out_width) : phase_length(p);
    pitch = line_length(p);
    packed = reinterpret_cast<A*>(held + slots);
    // another group: nothing that is held belongs to it
    const int64_t address = reinterpret_cast<int64_t>(data);
    if (*group == address) return;
    *group = address;
    for (int64_t i = 0; i < slots; ++i) held[i] = -1;
  }

  // the packed row of channel d; hold() has been called for it
  const A* line(int64_t row, int64_t d) const {
    return packed + (row % slots * p.channels + d) * pitch;
  }

  // where the outputs' columns of tap t begin in a line
  int64_t column(int64_t t) const {
    if (by_tap) return t * phase;
    const int64_t j = t * p.geometry.dilation_w;
    if (p.geometry.stride_w == 1) return j;
    return j % p.geometry.stride_w * phase + j / p.geometry.stride_w;
  }

  void hold(int64_t row) {
    const int64_t slot = row % slots, stride = p.geometry.stride_w, left = p.geometry.padding_w;
    if (held[slot] == row) return;
    held[slot] = row;
    if (by_tap) {
      hold_by_tap(packed + slot * p.channels * pitch, data + row * view.h);
      return;
    }
    if (stride == 1) {
      A* to = packed + slot * p.channels * pitch;
      const int64_t count = p.width < pitch - left ? p.width : pitch - left;
      for (int64_t d = 0; d < p.channels; ++d)
        for (int64_t i = 0; i < left; ++i) to[d * pitch + i] = 0;
      pack_lines(to + left, pitch, data + row * view.h, view.c, view.w, p.channels, count);
      clear_lines(to, pitch, p.channels, left + count);
      return;
    }
    for (int64_t d = 0; d < p.channels; ++d) {
      A* to = packed + (slot * p.channels + d) * pitch;
      const T* from = data + row * view.h + d * view.c;
      for (int64_t i = 0; i < pitch; ++i) to[i] = 0;
      const int64_t count = p.width < pitch - left ? p.width : pitch - left;
      for (int64_t c = 0; c < count; ++c)
        to[(c + left) % stride * phase + (c + left) / stride] = load<A>(from[c * view.w]);
    }
  }

  void hold_by_tap(A* to, const T* from) const {
    const Geometry& g = p.geometry;
    for (int64_t i = 0; i < p.channels * pitch; ++i) to[i] = 0;
    for (int64_t t = 0; t < g.kernel_w; ++t) {
      int64_t first, last;
      valid(t, g.stride_w, g.dilation_w, g.padding_w, p.width, p.out_width, &first, &last);
      for (int64_t d = 0; d < p.channels; ++d)
        for (int64_t x = first; x < last; ++x)
          to[d * pitch + t * phase + x] = load<A>(
              from[d * view.c + (x * g.stride_w + t * g.dilation_w - g.padding_w) * view.w]);
    }
  }
};

// Sixteen outputs of a row and D channels at once. The weights of a tap lie as its outputs do, or,
// for scatter, as what the outputs see through it.
template <typename A, int D, bool kShifted, typename R>
inline void aggregate_tile(const Problem& p, const R& rows, const A* weights, int64_t pitch,
                           int64_t y, int64_t x, int64_t d, A* sums) {
  typedef typename Lanes<A, 16>::Vector V;
  const Geometry& g = p.geometry;
  V s[D];
  for (int n = 0; n < D; ++n) s[n] = V{};
  for (int64_t u = 0; u < g.kernel_h; ++u) {
    const int64_t row = y * g.stride_h + u * g.dilation_h - g.padding_h;
    if (row < 0 || row >= p.height) continue;
    const A* line = rows.line(row, d) + x;
    for (int64_t t = 0; t < g.kernel_w; ++t) {
      const int64_t column = rows.column(t);
      const V factor =
          load_lanes<A, 16>(weights + (u * g.kernel_w + t) * pitch + x + (kShifted ? column : 0));
      const A* from = line + column;
#pragma GCC unroll 8
      for (int n = 0; n < D; ++n) s[n] += factor * load_lanes<A, 16>(from + n * rows.pitch);
    }
  }
  std::memcpy(sums, s, sizeof(s));
}

// one row of the outputs of one group, from packed weights
template <typename T, typename A, bool kShifted>
void aggregate_row(const Problem& p, const Rows<T, A>& rows, const A* weights, int64_t pitch,
                   T* result, int64_t y) {
  const View& r = p.result;
  A sums[8 * 16];
  for (int64_t x = 0; x < p.out_width; x += 16) {
    const int64_t count = p.out_width - x < 16 ? p.out_width - x : 16;
    int64_t d = 0;
    while (d < p.channels) {
      const int64_t left = p.channels - d;
      const int step = left >= 8 ? 8 : left >= 4 ? 4 : 1;
      if (step == 8)
        aggregate_tile<A, 8, kShifted>(p, rows, weights, pitch, y, x, d, sums);
      else if (step == 4)
        aggregate_tile<A, 4, kShifted>(p, rows, weights, pitch, y, x, d, sums);
      else
        aggregate_tile<A, 1, kShifted>(p, rows, weights, pitch, y, x, d, sums);
      unpack_lines(result + d * r.c + y * r.h + x * r.w, r.c, r.w, sums, 16, step, count);
      d += step;
    }
  }
}

// hold all rows of the map that row y of the outputs sees
template <typename T, typename A>
void hold_seen(const Problem& p, Rows<T, A>& rows, int64_t y) {
  const Geometry& g = p.geometry;
  for (int64_t u = 0; u < g.kernel_h; ++u) {
    const int64_t row = y * g.stride_h + u * g.dilation_h - g.padding_h;
    if (row >= 0 && row < p.height) rows.hold(row);
  }
}

// aggregate: the weights of a row of outputs
template <typename T, typename A>
void aggregate_line(const Problem& p, Rows<T, A>& rows, const T* weight, T* result, A* weights,
                    int64_t y) {
  const Geometry& g = p.geometry;
  const View& w = p.second;
  const int64_t pitch = padded(p.out_width);
  hold_seen(p, rows, y);
  for (int64_t u = 0; u < g.kernel_h; ++u) {
    const int64_t row = y * g.stride_h + u * g.dilation_h - g.padding_h;
    if (row < 0 || row >= p.height) continue;
    for (int64_t k = u * g.kernel_w; k < (u + 1) * g.kernel_w; ++k)
      pack_line(weights + k * pitch, pitch, 0, weight + k * w.c + y * w.h, w.w, p.out_width);
  }
  aggregate_row<T, A, false>(p, rows, weights, pitch, result, y);
}

// scatter with stride 1 is an aggregate with flipped taps (see flipped), whose weights move with
// the gradient
template <typename T, typename A>
void scatter_line(const Problem& f, Rows<T, A>& rows, const T* weight, T* result, A* weights,
                  int64_t y) {
  const Geometry& g = f.geometry;
  const View& w = f.second;
  for (int64_t u = 0; u < g.kernel_h; ++u) {
    const int64_t row = y + u * g.dilation_h - g.padding_h;
    if (row < 0 || row >= f.height) continue;
    rows.hold(row);
    for (int64_t k = u * g.kernel_w; k < (u + 1) * g.kernel_w; ++k) {
      const T* from = weight + (g.kernel_h * g.kernel_w - 1 - k) * w.c + row * w.h;
      pack_line(weights + k * rows.pitch, rows.pitch, g.padding_w, from, w.w, f.width);
    }
  }
  aggregate_row<T, A, true>(f, rows, weights, rows.pitch, result, y);
}

}  // namespace mmrednet::MMREDNET_ISA
