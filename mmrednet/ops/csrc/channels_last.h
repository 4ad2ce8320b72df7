// Aggregate and scatter on channels-last feature maps, read in place: vectors run along the
// channels of a group.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "integers.h"
#include "isa.h"
#include "params.h"
#include "simd.h"
#include "simd_pairs.h"
#include "window.h"
#include "workspace.h"

namespace mmrednet::MMREDNET_ISA {

// The weights of neighbouring outputs of one row: tap (u, t) of output x is
// data[u * row_stride + t * tap_stride + x * output_stride].
template <typename W>
struct WeightView {
  const W* data;
  int64_t row_stride, tap_stride, output_stride;

  // The weights from a later output on.
  WeightView from(int64_t output) const {
    return {data + output * output_stride, row_stride, tap_stride, output_stride};
  }
};

// N neighbouring channels of output (y, x).
template <typename T, typename A, int N, typename W>
inline void aggregate_channels(const LocalParams& p, const T* value, WeightView<W> weights,
                               T* result, int64_t y, int64_t x) {
  using V = Vector<A, N>;
  const Window& window = p.window;
  const int64_t top = first_row(p, y), left = first_column(p, x);
  const Range rows = taps_inside(top, window.dilation_h, p.height, window.kernel_h);
  const Range taps = taps_inside(left, window.dilation_w, p.width, window.kernel_w);
  // no column of the window may be inside the map
  const int64_t row_end = taps.begin < taps.end ? rows.end : rows.begin;
  // With one tap inside there is no next one. The distance to it may be so large that the product
  // would overflow.
  const int64_t step = taps.end - taps.begin > 1 ? window.dilation_w * p.first.w : 0;
  const int64_t next = weights.tap_stride;
  // four independent sums hide the latency of a multiply-add
  V s0 = {}, s1 = {}, s2 = {}, s3 = {};
  for (int64_t u = rows.begin; u < row_end; ++u) {
    const T* source = value + (top + u * window.dilation_h) * p.first.h +
                      (left + taps.begin * window.dilation_w) * p.first.w;
    const W* weight = weights.data + u * weights.row_stride + taps.begin * next;
    int64_t t = taps.begin;
    for (; t + 4 <= taps.end; t += 4, source += 4 * step, weight += 4 * next) {
      s0 += load<A>(weight[0]) * load_vector<A, N>(source);
      s1 += load<A>(weight[next]) * load_vector<A, N>(source + step);
      s2 += load<A>(weight[2 * next]) * load_vector<A, N>(source + 2 * step);
      s3 += load<A>(weight[3 * next]) * load_vector<A, N>(source + 3 * step);
    }
    if (t < taps.end) s0 += load<A>(weight[0]) * load_vector<A, N>(source);
    if (t + 1 < taps.end) s1 += load<A>(weight[next]) * load_vector<A, N>(source + step);
    if (t + 2 < taps.end) s2 += load<A>(weight[2 * next]) * load_vector<A, N>(source + 2 * step);
  }
  store_converted<T, A, N>(result, (s0 + s1) + (s2 + s3));
}

// Outputs of a block. Six sums of 16 channels, two registers each, fit the 16 registers of AVX2,
// with room for a vector of the map and a weight.
constexpr int kBlockOutputs = 6;

// Columns of the map that the outputs of a block see.
constexpr int block_columns(int kernel, int stride) {
  return kernel + stride * (kBlockOutputs - 1);
}

// Calls `run` with the width of the kernel and the stride of a window as types, if blocks are
// compiled for them. Returns whether they are.
template <typename Run>
inline bool for_block(const Window& window, Run run) {
  const auto with_stride = [&](auto kernel) {
    if (window.stride_w == 1)
      run(kernel, std::integral_constant<int, 1>());
    else
      run(kernel, std::integral_constant<int, 2>());
  };
  if (window.stride_w > 2 || window.dilation_w != 1) return false;
  if (window.kernel_w == 7)
    with_stride(std::integral_constant<int, 7>());
  else if (window.kernel_w == 5)
    with_stride(std::integral_constant<int, 5>());
  else if (window.kernel_w == 3)
    with_stride(std::integral_constant<int, 3>());
  else
    return false;
  return true;
}

// N neighbouring channels of kBlockOutputs neighbouring outputs, all of whose columns lie inside
// the map, for dilation 1. A vector of the map is loaded once for all outputs that see it.
template <typename T, typename A, int N, int kKernel, int kStride, typename W>
inline void aggregate_block(const LocalParams& p, const T* value, WeightView<W> weights, T* result,
                            int64_t y, int64_t x) {
  using V = Vector<A, N>;
  constexpr int kColumns = block_columns(kKernel, kStride);
  const Window& window = p.window;
  V sums[kBlockOutputs];
  for (int i = 0; i < kBlockOutputs; ++i) sums[i] = V{};
  const int64_t top = first_row(p, y);
  const Range rows = taps_inside(top, window.dilation_h, p.height, window.kernel_h);
  for (int64_t u = rows.begin; u < rows.end; ++u) {
    const T* source = value + (top + u * window.dilation_h) * p.first.h +
                      (x * kStride - window.padding_w) * p.first.w;
    const W* row_weights = weights.data + u * weights.row_stride;
#pragma GCC unroll 32
    for (int column = 0; column < kColumns; ++column) {
      const V pixel = load_vector<A, N>(source + column * p.first.w);
#pragma GCC unroll 16
      for (int i = 0; i < kBlockOutputs; ++i) {
        const int t = column - kStride * i;
        if (t < 0 || t >= kKernel) continue;
        sums[i] += load<A>(row_weights[t * weights.tap_stride + i * weights.output_stride]) * pixel;
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kBlockOutputs; ++i)
    store_converted<T, A, N>(result + i * p.result.w, sums[i]);
}

// The channels of one output from d on: 16 at a time, then 8, then 4, then the remaining ones.
template <typename T, typename A, typename W>
inline void aggregate_output(const LocalParams& p, const T* value, WeightView<W> weights, T* result,
                             int64_t y, int64_t x, int64_t d) {
  for (; d + 16 <= p.channels; d += 16)
    aggregate_channels<T, A, 16>(p, value + d, weights, result + d, y, x);
  for (; d + 8 <= p.channels; d += 8)
    aggregate_channels<T, A, 8>(p, value + d, weights, result + d, y, x);
  for (; d + 4 <= p.channels; d += 4)
    aggregate_channels<T, A, 4>(p, value + d, weights, result + d, y, x);
  for (; d < p.channels; ++d) aggregate_channels<T, A, 1>(p, value + d, weights, result + d, y, x);
}

// Outputs [x, x_end) of row y of one group. `weights` and `result` begin at output x.
template <typename T, typename A, typename W>
void aggregate_span(const LocalParams& p, const T* value, WeightView<W> weights, T* result,
                    int64_t y, int64_t x, int64_t x_end) {
  const Window& window = p.window;
  const int64_t block_width = window.kernel_w + window.stride_w * (kBlockOutputs - 1);
  const int64_t block_channels = p.channels / 8 * 8;
  while (x < x_end) {
    // shifted windows are those that would reach beyond the map
    const int64_t left = x * window.stride_w - window.padding_w;
    const bool inside = x + kBlockOutputs <= x_end && left >= 0 && left + block_width <= p.width;
    const bool block =
        inside && for_block(window, [&](auto kernel, auto stride) {
          int64_t d = 0;
          for (; d + 16 <= p.channels; d += 16)
            aggregate_block<T, A, 16, kernel, stride>(p, value + d, weights, result + d, y, x);
          if (d < block_channels)
            aggregate_block<T, A, 8, kernel, stride>(p, value + d, weights, result + d, y, x);
        });
    const int64_t outputs = block ? kBlockOutputs : 1, d = block ? block_channels : 0;
    // a block leaves nothing to do for channels that are a multiple of 8
    for (int64_t i = 0; d < p.channels && i < outputs; ++i) {
      const WeightView<W> output_weights = weights.from(i);
      aggregate_output<T, A>(p, value, output_weights, result + i * p.result.w, y, x + i, d);
    }
    weights = weights.from(outputs);
    result += outputs * p.result.w;
    x += outputs;
  }
}

// The weights of neighbouring outputs of one row in pairs of taps: those of taps t and t + 1, for
// an even t, of row u of the window are data[u * row_stride + t / 2 * pair_stride + x].
template <typename A>
struct PairView {
  const A* data;
  int64_t row_stride, pair_stride;

  PairView from(int64_t output) const { return {data + output, row_stride, pair_stride}; }

  // One pair in every lane.
  Simd<A> pair(int64_t u, int64_t t, int64_t x) const {
    uint32_t bits;
    std::memcpy(&bits, data + u * row_stride + t / 2 * pair_stride + x, sizeof(bits));
    return broadcast_pair(bits);
  }
};

// Sixteen channels of kBlockOutputs neighbouring outputs, for stride and dilation 1, with weights
// in pairs. Each vector of the map and its right neighbour make a vector of pairs for all outputs
// that see both. Columns outside the map are zero; with kInside there are none.
template <typename T, typename A, int kKernel, int kStride, bool kInside>
inline void aggregate_pair_block(const LocalParams& p, const T* value, PairView<A> weights,
                                 T* result, int64_t y, int64_t x) {
  constexpr int kColumns = block_columns(kKernel, kStride);
  const Window& window = p.window;
  Simd<A> sums[kBlockOutputs];
  for (int i = 0; i < kBlockOutputs; ++i) sums[i] = Simd<A>{};
  const int64_t top = y * window.stride_h - window.padding_h;
  const int64_t left = x * kStride - window.padding_w;
  const Range rows = taps_inside(top, window.dilation_h, p.height, window.kernel_h);
  for (int64_t u = rows.begin; u < rows.end; ++u) {
    const T* source = value + (top + u * window.dilation_h) * p.first.h + left * p.first.w;
    const auto pixel = [&](int64_t column) {
      const bool is_inside = kInside || (left + column >= 0 && left + column < p.width);
      return is_inside ? load_vector<A, kSimdWidth>(source + column * p.first.w) : Simd<A>{};
    };
    Simd<A> current = pixel(0);
#pragma GCC unroll 32
    for (int column = 0; column < kColumns; ++column) {
      const Simd<A> next = column + 1 < kColumns ? pixel(column + 1) : Simd<A>{};
      const Simd<A> single = join_pairs<A>(current, Simd<A>{});
      const Simd<A> pair = join_pairs<A>(current, next);
#pragma GCC unroll 16
      for (int i = 0; i < kBlockOutputs; ++i) {
        const int t = column - kStride * i;
        if (t < 0 || t >= kKernel || t % 2) continue;
        sums[i] = dot_pairs<A>(sums[i], weights.pair(u, t, i), t + 1 < kKernel ? pair : single);
      }
      current = next;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kBlockOutputs; ++i)
    store_converted<T, A, kSimdWidth>(result + i * p.result.w, sums[i]);
}

// N neighbouring channels, up to 16, of output (y, x) for any window, with weights in pairs.
template <typename T, typename A, int N>
inline void aggregate_pair_channels(const LocalParams& p, const T* value, PairView<A> weights,
                                    T* result, int64_t y, int64_t x) {
  const Window& window = p.window;
  const int64_t top = y * window.stride_h - window.padding_h;
  const int64_t left = x * window.stride_w - window.padding_w;
  const Range rows = taps_inside(top, window.dilation_h, p.height, window.kernel_h);
  const Range taps = taps_inside(left, window.dilation_w, p.width, window.kernel_w);
  // two independent sums hide some of the latency
  Simd<A> sums[2] = {};
  for (int64_t u = rows.begin; u < rows.end; ++u) {
    const T* source = value + (top + u * window.dilation_h) * p.first.h;
    const auto pixel = [&](int64_t t) {
      Simd<A> vector = {};
      if (t < taps.begin || t >= taps.end) return vector;
      const auto loaded = load_vector<A, N>(source + (left + t * window.dilation_w) * p.first.w);
      std::memcpy(&vector, &loaded, sizeof(loaded));
      return vector;
    };
    for (int64_t t = taps.begin / 2 * 2; t < taps.end; t += 2) {
      Simd<A>& sum = sums[t / 2 % 2];
      sum = dot_pairs<A>(sum, weights.pair(u, t, 0), join_pairs<A>(pixel(t), pixel(t + 1)));
    }
  }
  const Simd<A> total = sums[0] + sums[1];
  Vector<A, N> channels;
  std::memcpy(&channels, &total, sizeof(channels));
  store_converted<T, A, N>(result, channels);
}

// Outputs [x, x_end) of row y of one group, with weights in pairs. `weights` and `result` begin at
// output x.
template <typename T, typename A>
void aggregate_pair_span(const LocalParams& p, const T* value, PairView<A> weights, T* result,
                         int64_t y, int64_t x, int64_t x_end) {
  const Window& window = p.window;
  int64_t block_channels = p.channels / kSimdWidth * kSimdWidth;
  const bool has_blocks =
      x_end - x >= kBlockOutputs && for_block(window, [&](auto k, auto s) {
        for (int64_t begin = x; begin < x_end; begin += kBlockOutputs) {
          // the last block moves back and computes some outputs again
          const int64_t first = int_min(begin, x_end - kBlockOutputs), offset = first - x;
          const int64_t left = first * s - window.padding_w;
          const bool inside = left >= 0 && left + block_columns(k, s) <= p.width;
          T* target = result + offset * p.result.w;
          for (int64_t d = 0; d < block_channels; d += kSimdWidth) {
            if (inside)
              aggregate_pair_block<T, A, k, s, true>(p, value + d, weights.from(offset), target + d,
                                                     y, first);
            else
              aggregate_pair_block<T, A, k, s, false>(p, value + d, weights.from(offset),
                                                      target + d, y, first);
          }
        }
      });
  if (!has_blocks) block_channels = 0;
  for (int64_t i = 0; block_channels < p.channels && i < x_end - x; ++i) {
    const PairView<A> pairs = weights.from(i);
    T* target = result + i * p.result.w;
    int64_t d = block_channels;
    for (; d + 16 <= p.channels; d += 16)
      aggregate_pair_channels<T, A, 16>(p, value + d, pairs, target + d, y, x + i);
    for (; d + 8 <= p.channels; d += 8)
      aggregate_pair_channels<T, A, 8>(p, value + d, pairs, target + d, y, x + i);
    for (; d + 4 <= p.channels; d += 4)
      aggregate_pair_channels<T, A, 4>(p, value + d, pairs, target + d, y, x + i);
    for (; d < p.channels; ++d)
      aggregate_pair_channels<T, A, 1>(p, value + d, pairs, target + d, y, x + i);
  }
}

// The outputs that see one position of the map along one axis, each with the tap it sees it by.
struct ReachingTaps {
  int64_t count, tap[kMaxListedTaps], output[kMaxListedTaps];

  void find(int64_t position, int64_t kernel, int64_t stride, int64_t dilation, int64_t padding,
            int64_t outputs) {
    count = 0;
    for (int64_t t = 0; t < kernel; ++t) {
      const int64_t start = position + padding - t * dilation;
      // a division is slow, and with stride 1 there is nothing to divide
      if (start < 0 || (stride > 1 && start % stride)) continue;
      const int64_t index = stride > 1 ? start / stride : start;
      if (index >= outputs) continue;
      tap[count] = t;
      output[count++] = index;
    }
  }

  // The same for shifted windows on an axis of `size` positions.
  void find_shifted(int64_t position, int64_t kernel, int64_t size) {
    count = 0;
    for (int64_t t = 0; t < kernel; ++t) {
      const Range outputs = outputs_starting_at(position - t, kernel, size);
      for (int64_t index = outputs.begin; index < outputs.end; ++index) {
        tap[count] = t;
        output[count++] = index;
      }
    }
  }
};

// N neighbouring channels of one position of the map.
template <typename T, typename A, int N>
inline void scatter_channels(const LocalParams& p, const T* grad, const T* weight, T* result,
                             const ReachingTaps& rows, const ReachingTaps& columns) {
  const Strides &grads = p.first, &weights = p.second;
  // two sums for even and odd columns hide some of the latency of a multiply-add
  Vector<A, N> s0 = {}, s1 = {};
  for (int64_t i = 0; i < rows.count; ++i) {
    const T* grad_row = grad + rows.output[i] * grads.h;
    const T* weight_row =
        weight + rows.tap[i] * p.window.kernel_w * weights.c + rows.output[i] * weights.h;
    const auto product = [&](int64_t j) {
      const int64_t tap = columns.tap[j], x = columns.output[j];
      return load<A>(weight_row[tap * weights.c + x * weights.w]) *
             load_vector<A, N>(grad_row + x * grads.w);
    };
    int64_t j = 0;
    for (; j + 2 <= columns.count; j += 2) {
      s0 += product(j);
      s1 += product(j + 1);
    }
    if (j < columns.count) s0 += product(j);
  }
  store_converted<T, A, N>(result, s0 + s1);
}

// The channels of one position of the map from d on.
template <typename T, typename A>
void scatter_position(const LocalParams& p, const T* grad, const T* weight, T* result, int64_t d,
                      const ReachingTaps& rows, const ReachingTaps& columns) {
  for (; d + 16 <= p.channels; d += 16)
    scatter_channels<T, A, 16>(p, grad + d, weight, result + d, rows, columns);
  for (; d + 8 <= p.channels; d += 8)
    scatter_channels<T, A, 8>(p, grad + d, weight, result + d, rows, columns);
  for (; d + 4 <= p.channels; d += 4)
    scatter_channels<T, A, 4>(p, grad + d, weight, result + d, rows, columns);
  for (; d < p.channels; ++d)
    scatter_channels<T, A, 1>(p, grad + d, weight, result + d, rows, columns);
}

// Adds what one row of outputs gives to 16 channels of kBlockOutputs neighbouring positions, from x
// on: of the outputs that stand in the centre of their windows. Unless kInside, some of the columns
// around the positions have no such output.
template <typename T, typename A, int kKernel, bool kInside>
inline void add_centred_outputs(const LocalParams& p, const T* grad, const T* weight, int64_t x,
                                Simd<A>* sums) {
  constexpr int kReach = kKernel / 2, kColumns = block_columns(kKernel, 1);
#pragma GCC unroll 32
  for (int column = 0; column < kColumns; ++column) {
    const int64_t output = x - kReach + column;
    if (!kInside && (output < kReach || output >= p.width - kReach)) continue;
    const Simd<A> pixel = load_vector<A, kSimdWidth>(grad + output * p.first.w);
    const T* output_weight = weight + output * p.second.w;
#pragma GCC unroll 16
    for (int i = 0; i < kBlockOutputs; ++i) {
      const int t = kKernel - 1 + i - column;
      if (t < 0 || t >= kKernel) continue;
      sums[i] += load<A>(output_weight[t * p.second.c]) * pixel;
    }
  }
}

// The same of the outputs of one end of the row, whose windows begin `tap` positions before x.
template <typename T, typename A, int kKernel>
inline void add_end_outputs(const LocalParams& p, const T* grad, const T* weight, Range outputs,
                            int64_t tap, Simd<A>* sums) {
  for (int64_t output = outputs.begin; output < outputs.end; ++output) {
    const Simd<A> pixel = load_vector<A, kSimdWidth>(grad + output * p.first.w);
    const T* output_weight = weight + output * p.second.w;
#pragma GCC unroll 16
    for (int i = 0; i < kBlockOutputs; ++i) {
      const int64_t t = tap + i;
      if (t >= 0 && t < kKernel) sums[i] += load<A>(output_weight[t * p.second.c]) * pixel;
    }
  }
}

// Sixteen channels of kBlockOutputs neighbouring positions of the map, from x on, for shifted
// windows. `rows` are the rows of outputs that see them.
template <typename T, typename A, int kKernel>
inline void scatter_block(const LocalParams& p, const T* grad, const T* weight, T* result,
                          const ReachingTaps& rows, int64_t x) {
  constexpr int64_t kReach = kKernel / 2;
  const Strides &grads = p.first, &weights = p.second;
  // the last window of the row begins here
  const int64_t last = p.width - kKernel;
  const bool at_left = x < kKernel;
  const bool at_right = x + kBlockOutputs > last;
  Simd<A> sums[kBlockOutputs];
  for (int i = 0; i < kBlockOutputs; ++i) sums[i] = Simd<A>{};
  for (int64_t row = 0; row < rows.count; ++row) {
    const T* row_grad = grad + rows.output[row] * grads.h;
    const T* row_weight =
        weight + rows.tap[row] * kKernel * weights.c + rows.output[row] * weights.h;
    if (!at_left && !at_right) {
      add_centred_outputs<T, A, kKernel, true>(p, row_grad, row_weight, x, sums);
      continue;
    }
    add_centred_outputs<T, A, kKernel, false>(p, row_grad, row_weight, x, sums);
    if (at_left) add_end_outputs<T, A, kKernel>(p, row_grad, row_weight, {0, kReach}, x, sums);
    if (at_right)
      add_end_outputs<T, A, kKernel>(p, row_grad, row_weight, {p.width - kReach, p.width}, x - last,
                                     sums);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kBlockOutputs; ++i)
    store_converted<T, A, kSimdWidth>(result + i * p.result.w, sums[i]);
}

// A row of the map, for shifted windows. `rows` are the rows of outputs that see it.
template <typename T, typename A>
void scatter_shifted_span(const LocalParams& p, const T* grad, const T* weight, T* result,
                          const ReachingTaps& rows) {
  const int64_t block_channels = p.channels / kSimdWidth * kSimdWidth;
  const bool has_blocks =
      p.width >= kBlockOutputs && for_block(p.window, [&](auto kernel, auto) {
        for (int64_t begin = 0; begin < p.width; begin += kBlockOutputs) {
          // the last block moves back and computes some positions again
          const int64_t x = int_min(begin, p.width - kBlockOutputs);
          T* target = result + x * p.result.w;
          for (int64_t d = 0; d < block_channels; d += kSimdWidth)
            scatter_block<T, A, kernel>(p, grad + d, weight, target + d, rows, x);
        }
      });
  const int64_t d = has_blocks ? block_channels : 0;
  ReachingTaps columns;
  for (int64_t x = 0; d < p.channels && x < p.width; ++x) {
    columns.find_shifted(x, p.window.kernel_w, p.width);
    scatter_position<T, A>(p, grad, weight, result + x * p.result.w, d, rows, columns);
  }
}

}  // namespace mmrednet::MMREDNET_ISA
