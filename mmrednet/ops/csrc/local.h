// The three primitives, line by line.

#pragma once

#include <cstdint>

#include "channels_last.h"
#include "correlate.h"
#include "isa.h"
#include "packed_rows.h"
#include "params.h"
#include "simd.h"
#include "transpose.h"
#include "window.h"

namespace mmrednet::MMREDNET_ISA {

// scatter, one row of the map of one group: what every output that sees it through some tap adds
template <typename T, typename A>
void scatter_row(const Problem& p, const T* grad, const T* weight, T* result, A* sums, int64_t y) {
  const Geometry& g = p.geometry;
  const View &q = p.first, &w = p.second, &r = p.result;
  for (int64_t i = 0; i < p.channels * p.width; ++i) sums[i] = 0;
  for (int64_t u = 0; u < g.kernel_h; ++u) {
    const int64_t from = y + g.padding_h - u * g.dilation_h;
    if (from < 0 || from % g.stride_h || from / g.stride_h >= p.out_height) continue;
    const int64_t row = from / g.stride_h;
    for (int64_t t = 0; t < g.kernel_w; ++t) {
      int64_t first, last;
      valid(t, g.stride_w, g.dilation_w, g.padding_w, p.width, p.out_width, &first, &last);
      if (first >= last) continue;
      const int64_t column = first * g.stride_w + t * g.dilation_w - g.padding_w;
      const T* wt = weight + (u * g.kernel_w + t) * w.c + row * w.h + first * w.w;
      for (int64_t d = 0; d < p.channels; ++d) {
        A* __restrict__ s = sums + d * p.width + column;
        const T* gr = grad + d * q.c + row * q.h + first * q.w;
        for (int64_t x = 0; x < last - first; ++x)
          s[x * g.stride_w] += load<A>(wt[x * w.w]) * load<A>(gr[x * q.w]);
      }
    }
  }
  for (int64_t d = 0; d < p.channels; ++d)
    for (int64_t x = 0; x < p.width; ++x)
      result[d * r.c + y * r.h + x * r.w] = store<T>(sums[d * p.width + x]);
}

// Where the weights of row y lie. A scatter with stride 1 is an aggregate with flipped taps (see
// flipped), whose weights lie at what an output sees.
template <typename T>
inline Taps<T> weights_of(const Problem& f, const T* weight, int64_t y, bool flip) {
  const Geometry& g = f.geometry;
  const View& w = f.second;
  if (!flip) return {weight + y * w.h, g.kernel_w * w.c, w.c, w.w};
  const int64_t last = g.kernel_h * g.kernel_w - 1;
  return {weight + last * w.c + (y - g.padding_h) * w.h - g.padding_w * w.w,
          g.dilation_h * w.h - g.kernel_w * w.c, g.dilation_w * w.w - w.c, w.w};
}

// lines [begin, end) of the problem, a line being one row of one group of one image; `memory` holds
// p.scratch bytes
template <typename T, typename A>
void run(const Problem& p, const void* first_data, const void* second_data, void* result_data,
         void* memory, int64_t begin, int64_t end) {
  const bool scatter = p.kind == kScatter, correlate = p.kind == kCorrelate;
  const bool pixels = by_pixels(p), flip = scatter && can_flip(p);
  const Problem f = flip ? flipped(p) : p;
  char* held = static_cast<char*>(memory);
  // scattering row by row, or pixel by pixel, needs no packed rows
  const int64_t bytes = pixels || (scatter && !flip) ? 0 : rows_bytes(f, sizeof(A));
  A* scratch = reinterpret_cast<A*>(held + p.held * bytes);
  if (bytes) Rows<T, A>::forget(held, p.held, bytes);
  Hits hit_rows, hit_columns;
  const Geometry& g = p.geometry;
  for (int64_t line = begin; line < end; ++line) {
    const Place place = place_of(line, p.lines, p.groups, pixels || p.held > 1);
    const int64_t image = place.image, group = place.group, y = place.row;
    char* piece = held + (p.held > 1 ? group * bytes : 0);
    const T* first = static_cast<const T*>(first_data) + image * p.first.b + group * p.first.g;
    const T* second = static_cast<const T*>(second_data) + image * p.second.b + group * p.second.g;
    T* out = static_cast<T*>(result_data) + image * p.result.b + group * p.result.g;
    if (pixels && scatter && !flip) {
      hit_rows.find(y, g.kernel_h, g.stride_h, g.dilation_h, g.padding_h, p.out_height);
      for (int64_t x = 0; x < p.width; ++x) {
        hit_columns.find(x, g.kernel_w, g.stride_w, g.dilation_w, g.padding_w, p.out_width);
        scatter_pixel<T, A>(p, first, second, out + y * p.result.h + x * p.result.w, hit_rows,
                            hit_columns);
      }
    } else if (pixels) {
      aggregate_span<T, A>(f, first, weights_of<T>(f, second, y, flip), out + y * p.result.h, y, 0,
                           f.out_width);
    } else if (correlate) {
      const int64_t pitch = padded(p.out_width), taps = g.kernel_h * g.kernel_w;
      A* logits = scratch + p.channels * pitch;
      Rows<T, A> rows(p, p.second, piece, second);
      pack_lines(scratch, pitch, first + y * p.first.h, p.first.c, p.first.w, p.channels,
                 p.out_width);
      clear_lines(scratch, pitch, p.channels, p.out_width);
      correlate_row(p, rows, scratch, pitch, logits, y);
      unpack_lines(out + y * p.result.h, p.result.c, p.result.w, logits, pitch, taps, p.out_width);
    } else if (flip) {
      Rows<T, A> rows(f, p.first, piece, first);
      scatter_line<T, A>(f, rows, second, out, scratch, y);
    } else if (scatter) {
      scatter_row<T, A>(p, first, second, out, scratch, y);
    } else {
      Rows<T, A> rows(p, p.first, piece, first);
      aggregate_line<T, A>(p, rows, second, out, scratch, y);
    }
  }
}

}  // namespace mmrednet::MMREDNET_ISA
