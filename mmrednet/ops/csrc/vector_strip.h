// Strips and tiles of vector attention: packed rows of keys and values, and the outputs of a
// vector.

#pragma once

#include <cstdint>

#include "integers.h"
#include "isa.h"
#include "matrix.h"
#include "params.h"
#include "simd.h"
#include "transpose.h"
#include "vector_params.h"
#include "workspace.h"

namespace mmrednet::MMREDNET_ISA {

// A position beyond the ends of an axis, reflected at them, again and again if need be.
inline int64_t reflect(int64_t position, int64_t length) {
  if (length == 1) return 0;
  const int64_t period = 2 * (length - 1);
  const int64_t phase = (position % period + period) % period;
  return int_min(phase, period - phase);
}

// Rows of outputs [first_row, first_row + rows) of one image.
struct Strip {
  int64_t image, first_row, rows;
};

inline Strip strip_at(const VectorParams& p, int64_t index) {
  const int64_t image = index / p.image_strips;
  const int64_t first = index % p.image_strips * p.strip_rows;
  return {image, first, int_min(p.strip_rows, p.out_height - first)};
}

// The row of the map that a packed row of a strip holds.
inline int64_t source_row(const VectorParams& p, const Strip& strip, int64_t packed) {
  const Window& w = p.window;
  const int64_t start = strip.first_row * w.stride_h - w.padding_h;
  if (!p.rows_by_tap) return reflect(start + packed, p.height);
  const int64_t tap = packed / p.strip_rows, row = packed % p.strip_rows;
  return reflect(start + row * w.stride_h + tap * w.dilation_h, p.height);
}

// The packed row that row y of the outputs of a strip sees through tap u.
inline int64_t packed_row(const VectorParams& p, int64_t y, int64_t u) {
  if (p.rows_by_tap) return u * p.strip_rows + y;
  return y * p.window.stride_h + u * p.window.dilation_h;
}

// The column of the map that a packed column holds.
inline int64_t source_column(const VectorParams& p, int64_t packed) {
  const Window& w = p.window;
  const int64_t part = packed / p.phase, x = packed % p.phase;
  const int64_t shift = p.columns_by_tap ? part * w.dilation_w : part;
  return reflect(x * w.stride_w + shift - w.padding_w, p.width);
}

// Where the columns that outputs see through tap v begin in a packed row.
inline int64_t tap_column(const VectorParams& p, int64_t v) {
  if (p.columns_by_tap) return v * p.phase;
  const int64_t column = v * p.window.dilation_w;
  return column % p.window.stride_w * p.phase + column / p.window.stride_w;
}

// Whether packed columns are those of the map, with a margin on both sides.
inline bool has_plain_columns(const VectorParams& p) {
  return !p.columns_by_tap && p.window.stride_w == 1;
}

// Packs the rows that a strip looks at: (packed rows, channels, pitch).
template <typename T, typename A>
void pack_strip(const VectorParams& p, const Strip& strip, const T* image, const Strides& strides,
                int64_t channels, A* target) {
  const int64_t left = p.window.padding_w;
  for (int64_t i = 0; i < p.packed_rows; ++i, target += channels * p.pitch) {
    const T* source = image + source_row(p, strip, i) * strides.h;
    if (!has_plain_columns(p)) {
      for (int64_t j = 0; j < p.pitch; ++j) {
        const T* column = source + source_column(p, j) * strides.w;
        for (int64_t c = 0; c < channels; ++c)
          target[c * p.pitch + j] = load<A>(column[c * strides.c]);
      }
      continue;
    }
    pack_matrix<T, A>({target + left, p.pitch, channels, p.width}, source, strides.c, strides.w);
    for (int64_t c = 0; c < channels; ++c) {
      A* row = target + c * p.pitch;
      for (int64_t j = 0; j < left; ++j) row[j] = row[left + reflect(j - left, p.width)];
      for (int64_t j = left + p.width; j < p.pitch; ++j)
        row[j] = row[left + reflect(j - left, p.width)];
    }
  }
}

// Sixteen neighbouring outputs of a strip, or fewer at its end. They lie in one or more rows, each
// of which fills a segment of the lanes.
template <typename A>
struct Lanes {
  int64_t count = 0, segments = 0;
  // of each segment: row of the strip, first column, first lane
  int64_t row[kSimdWidth], column[kSimdWidth], lane[kSimdWidth + 1];
  A lane_value[kSimdWidth + 1];

  Lanes() = default;

  Lanes(const VectorParams& p, int64_t first, int64_t outputs) {
    count = int_min(outputs - first, kSimdWidth);
    for (int64_t i = 0; i < count; ++segments) {
      row[segments] = (first + i) / p.out_width;
      column[segments] = (first + i) % p.out_width;
      lane[segments] = i;
      lane_value[segments] = static_cast<A>(i);
      i += p.out_width - column[segments];
    }
    lane[segments] = count;
    lane_value[segments] = static_cast<A>(kSimdWidth);
  }

  int64_t length(int64_t segment) const {
    return int_min(lane[segment + 1], count) - lane[segment];
  }
};

// The lanes of a vector as numbers.
template <typename A>
inline Simd<A> lane_numbers() {
  Simd<A> lanes;
  for (int n = 0; n < kSimdWidth; ++n) lanes[n] = static_cast<A>(n);
  return lanes;
}

// Ones in the lanes that are outputs, and zeros behind them.
template <typename A>
inline Simd<A> valid_lanes(const Lanes<A>& lanes) {
  return lane_numbers<A>() < static_cast<A>(lanes.count) ? Simd<A>{} + 1 : Simd<A>{};
}

// Where a tap of a vector of outputs begins in the packed rows of a strip: for each segment, the
// offset of lane 0, as if the segment reached to it.
struct Offsets {
  int64_t segment[kSimdWidth];
};

template <typename A>
inline Offsets tap_offsets(const VectorParams& p, const Lanes<A>& lanes, int64_t channels,
                           int64_t tap) {
  const int64_t u = tap / p.window.kernel_w, v = tap % p.window.kernel_w;
  Offsets offsets;
  for (int64_t n = 0; n < lanes.segments; ++n)
    offsets.segment[n] = packed_row(p, lanes.row[n], u) * channels * p.pitch + tap_column(p, v) +
                         lanes.column[n] - lanes.lane[n];
  return offsets;
}

// A tap of one channel. `kOneRow` tells that all lanes lie in one row.
template <bool kOneRow, typename A>
inline Simd<A> load_tap(const A* channel, const Offsets& offsets, const Lanes<A>& lanes) {
  Simd<A> value = load_simd<A>(channel + offsets.segment[0]);
  if constexpr (kOneRow) return value;
  for (int64_t n = 1; n < lanes.segments; ++n) {
    const Simd<A> other = load_simd<A>(channel + offsets.segment[n]);
    value = lane_numbers<A>() >= lanes.lane_value[n] ? other : value;
  }
  return value;
}

// Adds a vector to a tap of one channel.
template <bool kOneRow, typename A>
inline void add_to_tap(A* channel, const Offsets& offsets, const Lanes<A>& lanes, Simd<A> value) {
  if constexpr (kOneRow) {
    A* target = channel + offsets.segment[0];
    store_simd<A>(target, load_simd<A>(target) + value);
    return;
  }
  const Simd<A> numbers = lane_numbers<A>();
  for (int64_t n = 0; n < lanes.segments; ++n) {
    A* target = channel + offsets.segment[n];
    Simd<A> part = numbers >= lanes.lane_value[n] ? value : Simd<A>{};
    part = numbers < lanes.lane_value[n + 1] ? part : Simd<A>{};
    store_simd<A>(target, load_simd<A>(target) + part);
  }
}

// Packs a vector of outputs of a tensor (images, channels, out_height, out_width): a row for each
// channel, with zeros behind the last output.
template <typename T, typename A>
void pack_outputs(const Strip& strip, const Lanes<A>& lanes, const T* tensor,
                  const Strides& strides, Matrix<A> target) {
  for (int64_t n = 0; n < lanes.segments; ++n) {
    const T* source = tensor + strip.image * strides.b +
                      (strip.first_row + lanes.row[n]) * strides.h + lanes.column[n] * strides.w;
    pack_matrix<T, A>({target.data + lanes.lane[n], target.pitch, target.rows, lanes.length(n)},
                      source, strides.c, strides.w);
  }
  for (int64_t c = 0; c < target.rows; ++c)
    for (int64_t i = lanes.count; i < kSimdWidth; ++i) target.data[c * target.pitch + i] = 0;
}

// The way back.
template <typename T, typename A>
void unpack_outputs(const Strip& strip, const Lanes<A>& lanes, T* tensor, const Strides& strides,
                    Matrix<const A> source) {
  for (int64_t n = 0; n < lanes.segments; ++n) {
    T* target = tensor + strip.image * strides.b + (strip.first_row + lanes.row[n]) * strides.h +
                lanes.column[n] * strides.w;
    unpack_matrix<T, A>(target, strides.c, strides.w,
                        {source.data + lanes.lane[n], source.pitch, source.rows, lanes.length(n)});
  }
}

// Adds the gradients of the packed rows of all strips of an image to channel `channel` of the
// gradient (height, width) of the map, in the order of the strips.
template <typename A>
void fold_strips(const VectorParams& p, const A* strips, int64_t channels, int64_t image,
                 int64_t channel, A* map) {
  for (int64_t i = 0; i < p.height * p.width; ++i) map[i] = 0;
  const bool plain = has_plain_columns(p);
  const int64_t left = p.window.padding_w;
  for (int64_t s = 0; s < p.image_strips; ++s) {
    const int64_t index = image * p.image_strips + s;
    const Strip strip = strip_at(p, index);
    const A* source = strips + kSimdWidth + index * strip_stride(p, channels) + channel * p.pitch;
    for (int64_t i = 0; i < p.packed_rows; ++i, source += channels * p.pitch) {
      A* row = map + source_row(p, strip, i) * p.width;
      if (plain)
        for (int64_t x = 0; x < p.width; ++x) row[x] += source[left + x];
      for (int64_t j = 0; j < p.pitch; ++j) {
        if (plain && j == left) j += p.width;
        if (j < p.pitch) row[source_column(p, j)] += source[j];
      }
    }
  }
}

}  // namespace mmrednet::MMREDNET_ISA
