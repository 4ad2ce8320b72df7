// Feature maps packed row by row, so that vectors run along the width, and the aggregate over them.

#pragma once

#include <cstdint>
#include <cstring>

#include "integers.h"
#include "isa.h"
#include "matrix.h"
#include "params.h"
#include "simd.h"
#include "transpose.h"
#include "window.h"
#include "workspace.h"

namespace mmrednet::MMREDNET_ISA {

// Copies up to `count` elements of a row behind `left` zeros, and fills the target with zeros.
template <typename T, typename A>
inline void pack_padded_row(A* target, int64_t length, int64_t left, const T* source,
                            int64_t stride, int64_t count) {
  count = int_min(count, length - left);
  for (int64_t i = 0; i < left; ++i) target[i] = 0;
  // a loop of its own, because the compiler vectorises it
  if (stride == 1)
    for (int64_t i = 0; i < count; ++i) target[left + i] = load<A>(source[i]);
  else
    for (int64_t i = 0; i < count; ++i) target[left + i] = load<A>(source[i * stride]);
  for (int64_t i = left + count; i < length; ++i) target[i] = 0;
}

// A ring buffer of packed rows of one group of a feature map, in the workspace of a thread.
//
// A packed row has zeros for what lies outside the map, and is laid out so that each tap of 16
// neighbouring outputs is one vector load: as it is for stride 1, in phases for larger strides, or
// by tap (see workspace.h). Neighbouring rows of outputs share most rows of the map, which are then
// in the buffer already.
template <typename T, typename A>
struct PackedRows {
  const LocalParams& p;
  const Strides& strides;
  // In the workspace, which outlives this object: the address of the group whose rows these are,
  // the row of the map in each slot (-1: none), and the elements.
  int64_t *cached_group, *cached_row;
  A* packed;
  // first element of the group in the tensor
  const T* group;
  // number of slots, elements of a phase (or of a tap), and elements of a row
  int64_t slots, phase, pitch;
  bool by_tap;

  // Marks the buffers of `count` groups as empty. All bits set is the address of no group, while
  // that of a tensor without elements is zero.
  static void invalidate(char* memory, int64_t count, int64_t bytes) {
    for (int64_t i = 0; i < count; ++i) std::memset(memory + i * bytes, 0xff, sizeof(int64_t));
  }

  PackedRows(const LocalParams& params, const Strides& map, char* memory, const T* group_data)
      : p(params),
        strides(map),
        cached_group(reinterpret_cast<int64_t*>(memory)),
        cached_row(cached_group + 1),
        group(group_data),
        slots(ring_slots(params)),
        pitch(packed_row_length(params)),
        by_tap(packs_by_tap(params)) {
    phase = by_tap ? round_up(p.out_width) : phase_length(p);
    packed = reinterpret_cast<A*>(cached_row + slots);
    // the rows of another group are of no use
    const int64_t address = reinterpret_cast<int64_t>(group);
    if (*cached_group == address) return;
    *cached_group = address;
    for (int64_t i = 0; i < slots; ++i) cached_row[i] = -1;
  }

  // The slot of a row: one matrix row for each channel. Rows that are in use at the same time span
  // at most `slots` rows, so they never share a slot.
  A* slot(int64_t row) const { return packed + row % slots * p.channels * pitch; }

  // A packed row of channel d.
  const A* row(int64_t y, int64_t d) const { return slot(y) + d * pitch; }

  // Where the columns that outputs see through tap t begin in a packed row.
  int64_t tap_offset(int64_t t) const {
    if (by_tap) return t * phase;
    const int64_t column = t * p.window.dilation_w;
    if (p.window.stride_w == 1) return column;
    return column % p.window.stride_w * phase + column / p.window.stride_w;
  }

  // Packs a row of the map, unless it is there already.
  void pack(int64_t y) {
    if (cached_row[y % slots] == y) return;
    cached_row[y % slots] = y;
    const T* source = group + y * strides.h;
    if (by_tap)
      pack_taps(slot(y), source);
    else if (p.window.stride_w == 1)
      pack_columns(slot(y), source);
    else
      pack_phases(slot(y), source);
  }

  // Packs all rows of the map that row y of the outputs needs.
  void pack_window(int64_t y) {
    const Window& window = p.window;
    for (int64_t u = 0; u < window.kernel_h; ++u) {
      const int64_t row = y * window.stride_h + u * window.dilation_h - window.padding_h;
      if (row >= 0 && row < p.height) pack(row);
    }
  }

 private:
  // Columns of the map that fit a packed row behind the left padding.
  int64_t num_columns() const { return int_min(p.width, pitch - p.window.padding_w); }

  void pack_columns(A* target, const T* source) const {
    const int64_t left = p.window.padding_w, count = num_columns();
    for (int64_t d = 0; d < p.channels; ++d)
      for (int64_t i = 0; i < left; ++i) target[d * pitch + i] = 0;
    pack_matrix<T, A>({target + left, pitch, p.channels, count}, source, strides.c, strides.w);
    zero_columns<A>({target, pitch, p.channels, pitch}, left + count);
  }

  void pack_phases(A* target, const T* source) const {
    const int64_t left = p.window.padding_w, stride = p.window.stride_w;
    zero_columns<A>({target, pitch, p.channels, pitch}, 0);
    for (int64_t d = 0; d < p.channels; ++d)
      for (int64_t x = 0; x < num_columns(); ++x) {
        const int64_t column = x + left;
        target[d * pitch + column % stride * phase + column / stride] =
            load<A>(source[d * strides.c + x * strides.w]);
      }
  }

  void pack_taps(A* target, const T* source) const {
    const Window& window = p.window;
    zero_columns<A>({target, pitch, p.channels, pitch}, 0);
    for (int64_t t = 0; t < window.kernel_w; ++t) {
      const Range outputs = outputs_inside(t, window.stride_w, window.dilation_w, window.padding_w,
                                           p.width, p.out_width);
      for (int64_t d = 0; d < p.channels; ++d)
        for (int64_t x = outputs.begin; x < outputs.end; ++x) {
          const int64_t column = x * window.stride_w + t * window.dilation_w - window.padding_w;
          target[d * pitch + t * phase + x] = load<A>(source[d * strides.c + column * strides.w]);
        }
    }
  }
};

// Sums of 16 outputs of row y, from x on, and of D channels, from d on.
//
// `weights` has a row for each tap. Its columns are those of the outputs; or, if kShifted, they are
// laid out as the packed rows are, and move with the tap (see scatter_row_flipped).
template <typename T, typename A, int D, bool kShifted>
inline void aggregate_tile(const PackedRows<T, A>& rows, Matrix<const A> weights, int64_t y,
                           int64_t x, int64_t d, A* sums) {
  const LocalParams& p = rows.p;
  const Window& window = p.window;
  Simd<A> s[D];
  for (int n = 0; n < D; ++n) s[n] = Simd<A>{};
  for (int64_t u = 0; u < window.kernel_h; ++u) {
    const int64_t row = y * window.stride_h + u * window.dilation_h - window.padding_h;
    if (row < 0 || row >= p.height) continue;
    const A* packed_row = rows.row(row, d) + x;
    for (int64_t t = 0; t < window.kernel_w; ++t) {
      const int64_t offset = rows.tap_offset(t);
      const int64_t tap = u * window.kernel_w + t;
      const Simd<A> weight =
          load_simd<A>(weights.data + tap * weights.pitch + x + (kShifted ? offset : 0));
      const A* source = packed_row + offset;
#pragma GCC unroll 8
      for (int n = 0; n < D; ++n) s[n] += weight * load_simd<A>(source + n * rows.pitch);
    }
  }
  std::memcpy(sums, s, sizeof(s));
}

// Row y of the outputs of one group. `result` is the first element of the group. The rows that the
// window needs have been packed.
template <typename T, typename A, bool kShifted>
void aggregate_row(const PackedRows<T, A>& rows, Matrix<const A> weights, T* result, int64_t y) {
  const LocalParams& p = rows.p;
  const Strides& strides = p.result;
  // Eight independent sums hide the latency of a multiply-add, and each vector of weights is loaded
  // once for eight channels. More would not fit the 16 registers of AVX2.
  A sums[8 * kSimdWidth];
  for (int64_t x = 0; x < p.out_width; x += kSimdWidth) {
    const int64_t outputs = int_min(p.out_width - x, kSimdWidth);
    for (int64_t d = 0; d < p.channels;) {
      const int64_t remaining = p.channels - d;
      const int channels = remaining >= 8 ? 8 : remaining >= 4 ? 4 : 1;
      if (channels == 8)
        aggregate_tile<T, A, 8, kShifted>(rows, weights, y, x, d, sums);
      else if (channels == 4)
        aggregate_tile<T, A, 4, kShifted>(rows, weights, y, x, d, sums);
      else
        aggregate_tile<T, A, 1, kShifted>(rows, weights, y, x, d, sums);
      T* target = result + d * strides.c + y * strides.h + x * strides.w;
      unpack_matrix<T, A>(target, strides.c, strides.w, {sums, kSimdWidth, channels, outputs});
      d += channels;
    }
  }
}

}  // namespace mmrednet::MMREDNET_ISA
