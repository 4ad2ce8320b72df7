// Feature maps packed row by row, so that vectors run along the width, and the aggregate over them.

#pragma once

#include <cstdint>
#include <cstring>

#include "border_lanes.h"
#include "integers.h"
#include "isa.h"
#include "matrix.h"
#include "params.h"
#include "simd.h"
#include "simd_pairs.h"
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

// Packs the weights of one row of the window: a row for each tap, or for each pair of taps, behind
// `left` zeros. The second weights of pairs are those that lie `shift` elements further.
//
// `to` must have a row for each tap, as the second weights need one until they are joined.
template <typename T, typename A>
void pack_weights(Matrix<A> to, int64_t left, int64_t shift, const T* source, int64_t tap_stride,
                  int64_t output_stride, int64_t outputs) {
  constexpr int kStep = kDotsPairs<T> ? 2 : 1;
  for (int64_t t = 0; t < to.rows; t += kStep) {
    A* row = to.data + t / kStep * to.pitch;
    pack_padded_row(row, to.pitch, left, source + t * tap_stride, output_stride, outputs);
    if constexpr (kDotsPairs<T>) {
      A* second = row + to.pitch;
      const bool has_second = t + 1 < to.rows;
      if (has_second)
        pack_padded_row(second, to.pitch, left, source + (t + 1) * tap_stride, output_stride,
                        outputs);
      join_rows<A>(row, to.pitch, second + shift, has_second ? to.pitch - shift : 0);
    }
  }
}

// What an element of a packed row is: one number; two neighbouring channels; or the numbers that
// two neighbouring taps of the window see.
enum Packing { kNumbers, kChannelPairs, kTapPairs };

// The packing of maps that are multiplied over the channels, and of those that are summed over
// taps.
template <typename T>
constexpr Packing kChannelPacking = kDotsPairs<T> ? kChannelPairs : kNumbers;
template <typename T>
constexpr Packing kTapPacking = kDotsPairs<T> ? kTapPairs : kNumbers;

// A ring buffer of packed rows of one group of a feature map, in the workspace of a thread.
//
// A packed row has zeros for what lies outside the map, and is laid out so that each tap of 16
// neighbouring outputs is one vector load: as it is for stride 1, in phases for larger strides, or
// by tap (see workspace.h). Neighbouring rows of outputs share most rows of the map, which are then
// in the buffer already.
template <typename T, typename A, Packing kPacking = kNumbers>
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
  // matrix rows of a slot
  int64_t channels;
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
        channels(kPacking == kChannelPairs ? num_pairs(params.channels) : params.channels),
        by_tap(packs_by_tap(params)) {
    phase = by_tap ? round_up(p.out_width) : phase_length(p);
    packed = reinterpret_cast<A*>(cached_row + slots);
    // the rows of another group are of no use
    const int64_t address = reinterpret_cast<int64_t>(group);
    if (*cached_group == address) return;
    *cached_group = address;
    for (int64_t i = 0; i < slots; ++i) cached_row[i] = -1;
  }

  // The slot of a row: one matrix row for each channel or pair of channels. Rows that are in use at
  // the same time span at most `slots` rows, so they never share a slot.
  A* slot(int64_t row) const { return packed + row % slots * channels * pitch; }

  // A packed row of channel d.
  const A* row(int64_t y, int64_t d) const { return slot(y) + d * pitch; }

  // Where the columns that outputs see through tap t begin in a packed row.
  int64_t tap_offset(int64_t t) const {
    if (by_tap) return t * phase;
    const int64_t column = t * p.window.dilation_w;
    if (p.window.stride_w == 1) return column;
    return column % p.window.stride_w * phase + column / p.window.stride_w;
  }

  // Calls `run` with what loads the columns of 16 outputs from x on.
  template <typename Run>
  void with_lanes(int64_t x, Run run) const {
    const int64_t first = p.window.padding_w, last = p.width - 1 - first;
    if (has_border(p, x))
      run(BorderLanes<A>(x, first, last));
    else
      run(InnerLanes<A>{x});
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
    const int64_t top = first_row(p, y);
    for (int64_t u = 0; u < window.kernel_h; ++u) {
      const int64_t row = top + u * window.dilation_h;
      if (row >= 0 && row < p.height) pack(row);
    }
  }

 private:
  // Columns of the map that fit a packed row behind the left padding.
  int64_t num_columns() const { return int_min(p.width, pitch - p.window.padding_w); }

  // Copies `count` columns of the map, from x on and `step` apart, to neighbouring columns of a
  // packed row. Pairs of taps are numbers at first.
  void copy_columns(A* target, const T* source, int64_t x, int64_t step, int64_t count) const {
    const Matrix<A> columns = {target, pitch, channels, count};
    const T* first = source + x * strides.w;
    // one column needs no step, whose product with a stride could overflow
    const int64_t column_stride = count > 1 ? step * strides.w : 0;
    if constexpr (kPacking == kChannelPairs)
      pack_pairs<T, A>(columns, first, p.channels, strides.c, column_stride);
    else
      pack_matrix<T, A>(columns, first, strides.c, column_stride);
  }

  void pack_columns(A* target, const T* source) const {
    const int64_t left = p.window.padding_w, count = num_columns();
    for (int64_t d = 0; d < channels; ++d)
      for (int64_t i = 0; i < left; ++i) target[d * pitch + i] = 0;
    if (count > 0) copy_columns(target + left, source, 0, 1, count);
    zero_columns<A>({target, pitch, channels, pitch}, left + count);
    if constexpr (kPacking == kTapPairs) {
      const int64_t distance = p.window.dilation_w;
      for (int64_t d = 0; d < channels; ++d) {
        A* row = target + d * pitch;
        join_rows<A>(row, pitch, row + distance, pitch - distance);
      }
    }
  }

  void pack_phases(A* target, const T* source) const {
    const int64_t left = p.window.padding_w, stride = p.window.stride_w;
    zero_columns<A>({target, pitch, channels, pitch}, 0);
    for (int64_t r = 0; r < stride; ++r) {
      // columns of the padded map that belong to the phase: r + stride * i
      const int64_t begin = r < left ? ceil_div(left - r, stride) : 0;
      const int64_t end = int_min(ceil_div(left + num_columns() - r, stride), phase);
      if (begin < end)
        copy_columns(target + r * phase + begin, source, r + begin * stride - left, stride,
                     end - begin);
    }
    if constexpr (kPacking == kTapPairs)
      for (int64_t d = 0; d < channels; ++d) join_phases(target + d * pitch);
  }

  // The next tap of a column of phase r lies in phase r + dilation, or some columns further in the
  // phase that this is modulo the stride.
  void join_phases(A* row) const {
    const int64_t stride = p.window.stride_w, dilation = p.window.dilation_w;
    for (int64_t r = 0; r < stride; ++r) {
      const int64_t next = (r + dilation) % stride, shift = (r + dilation) / stride;
      const A* second = row + next * phase + shift;
      // phases before this one are pairs already
      if (next < r)
        join_rows<A, true>(row + r * phase, phase, second, phase - shift);
      else
        join_rows<A>(row + r * phase, phase, second, phase - shift);
    }
  }

  void pack_taps(A* target, const T* source) const {
    const Window& window = p.window;
    zero_columns<A>({target, pitch, channels, pitch}, 0);
    for (int64_t t = 0; t < window.kernel_w; ++t) {
      const Range outputs = outputs_inside(t, window.stride_w, window.dilation_w, window.padding_w,
                                           p.width, p.out_width);
      if (outputs.begin >= outputs.end) continue;
      const int64_t x = outputs.begin * window.stride_w + t * window.dilation_w - window.padding_w;
      copy_columns(target + t * phase + outputs.begin, source, x, window.stride_w,
                   outputs.end - outputs.begin);
    }
    if constexpr (kPacking == kTapPairs)
      for (int64_t i = 0; i < channels * window.kernel_w; ++i) {
        const int64_t d = i / window.kernel_w, t = i % window.kernel_w;
        A* row = target + d * pitch + t * phase;
        join_rows<A>(row, phase, row + phase, t + 1 < window.kernel_w ? phase : 0);
      }
  }
};

// The map of an aggregate. Where tensors are multiplied in pairs, it is packed in pairs of taps.
template <typename T, typename A>
using AggregateRows = PackedRows<T, A, kTapPacking<T>>;

// Matrix rows of the weights of one row of the window: one for each tap or pair of taps.
template <typename T>
inline int64_t weight_rows(int64_t kernel_w) {
  return kDotsPairs<T> ? num_pairs(kernel_w) : kernel_w;
}

// Sums of 16 outputs of row y and of D channels, from d on.
//
// `weights` has a row for each tap or pair of taps, and begins at output x. Its columns are those
// of the outputs; or, if kShifted, they are laid out as the packed rows are, and move with the tap
// (see scatter_row_flipped).
template <typename T, typename A, int D, bool kShifted, typename Lanes>
inline void aggregate_tile(const AggregateRows<T, A>& rows, const Lanes& lanes,
                           Matrix<const A> weights, int64_t y, int64_t d, A* sums) {
  constexpr int kStep = kDotsPairs<T> ? 2 : 1;
  const LocalParams& p = rows.p;
  const Window& window = p.window;
  Simd<A> s[D];
  for (int n = 0; n < D; ++n) s[n] = Simd<A>{};
  const int64_t top = first_row(p, y);
  for (int64_t u = 0; u < window.kernel_h; ++u) {
    const int64_t row = top + u * window.dilation_h;
    if (row < 0 || row >= p.height) continue;
    const A* packed_row = rows.row(row, d);
    const A* weight_row = weights.data + u * weight_rows<T>(window.kernel_w) * weights.pitch;
    for (int64_t t = 0; t < window.kernel_w; t += kStep, weight_row += weights.pitch) {
      const int64_t offset = rows.tap_offset(t);
      const Simd<A> weight = load_simd<A>(weight_row + (kShifted ? offset : 0));
      const A* source = packed_row + offset;
      // the last of an odd number of taps has no second one, and what lies there may be infinite
      const bool is_single = kDotsPairs<T> && t + 1 == window.kernel_w;
#pragma GCC unroll 8
      for (int n = 0; n < D; ++n) {
        const Simd<A> value = lanes.load(source + n * rows.pitch);
        if constexpr (kDotsPairs<T>)
          s[n] = dot_pairs<A>(s[n], weight, is_single ? first_of_pairs<A>(value) : value);
        else
          s[n] += weight * value;
      }
    }
  }
  std::memcpy(sums, s, sizeof(s));
}

// Sixteen outputs of row y of one group, from x on, times a factor unless that is null. `result` is
// the first element of the group.
template <typename T, typename A, bool kShifted, typename Lanes>
void aggregate_lanes(const AggregateRows<T, A>& rows, const Lanes& lanes, Matrix<const A> weights,
                     T* result, int64_t y, int64_t x, const Simd<A>* factor) {
  const LocalParams& p = rows.p;
  const Strides& strides = p.result;
  // Eight independent sums hide the latency of a multiply-add, and each vector of weights is loaded
  // once for eight channels. More would not fit the 16 registers of AVX2.
  A sums[8 * kSimdWidth];
  const int64_t outputs = int_min(p.out_width - x, kSimdWidth);
  for (int64_t d = 0; d < p.channels;) {
    const int64_t remaining = p.channels - d;
    const int channels = remaining >= 8 ? 8 : remaining >= 4 ? 4 : 1;
    if (channels == 8)
      aggregate_tile<T, A, 8, kShifted>(rows, lanes, weights, y, d, sums);
    else if (channels == 4)
      aggregate_tile<T, A, 4, kShifted>(rows, lanes, weights, y, d, sums);
    else
      aggregate_tile<T, A, 1, kShifted>(rows, lanes, weights, y, d, sums);
    for (int n = 0; factor && n < channels; ++n)
      store_simd<A>(sums + n * kSimdWidth, load_simd<A>(sums + n * kSimdWidth) * *factor);
    T* target = result + d * strides.c + y * strides.h + x * strides.w;
    unpack_matrix<T, A>(target, strides.c, strides.w, {sums, kSimdWidth, channels, outputs});
    d += channels;
  }
}

// The same, with what loads the columns of these outputs.
template <typename T, typename A, bool kShifted>
void aggregate_outputs(const AggregateRows<T, A>& rows, Matrix<const A> weights, T* result,
                       int64_t y, int64_t x, const Simd<A>* factor) {
  const auto run = [&](const auto& lanes) {
    aggregate_lanes<T, A, kShifted>(rows, lanes, weights, result, y, x, factor);
  };
  // windows of a flipped scatter stay where they are
  if constexpr (kShifted)
    run(InnerLanes<A>{x});
  else
    rows.with_lanes(x, run);
}

// Row y of the outputs of one group. The rows that the window needs have been packed.
template <typename T, typename A, bool kShifted>
void aggregate_row(const AggregateRows<T, A>& rows, Matrix<const A> weights, T* result, int64_t y) {
  for (int64_t x = 0; x < rows.p.out_width; x += kSimdWidth)
    aggregate_outputs<T, A, kShifted>(rows, weights.from(0, x), result, y, x, nullptr);
}

}  // namespace mmrednet::MMREDNET_ISA
