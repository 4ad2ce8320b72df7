// The three primitives, row by row: see mmrednet/ops/local.py.

#pragma once

#include <cstdint>

#include "channels_last.h"
#include "correlate.h"
#include "integers.h"
#include "isa.h"
#include "matrix.h"
#include "packed_rows.h"
#include "params.h"
#include "simd.h"
#include "simd_pairs.h"
#include "transpose.h"
#include "window.h"
#include "workspace.h"

namespace mmrednet::MMREDNET_ISA {

// The first elements of one group of one image in each tensor.
template <typename T>
struct GroupPointers {
  const T *first, *second;
  T* result;
};

template <typename T>
inline GroupPointers<T> group_pointers(const LocalParams& p, const LocalPointers& pointers,
                                       RowIndex index) {
  const int64_t image = index.image, group = index.group;
  return {static_cast<const T*>(pointers.first) + image * p.first.b + group * p.first.g,
          static_cast<const T*>(pointers.second) + image * p.second.b + group * p.second.g,
          static_cast<T*>(pointers.result) + image * p.result.b + group * p.result.g};
}

// Row y of an aggregate: packs the rows of the map and the weights.
template <typename T, typename A>
void aggregate_packed_row(AggregateRows<T, A>& rows, const T* weight, T* result, A* workspace,
                          int64_t y) {
  const LocalParams& p = rows.p;
  const Window& window = p.window;
  const Strides& strides = p.second;
  const int64_t pitch = round_up(p.out_width), row_length = weight_rows<T>(window.kernel_w) * pitch;
  rows.pack_window(y);
  const int64_t top = first_row(p, y);
  for (int64_t u = 0; u < window.kernel_h; ++u) {
    const int64_t row = top + u * window.dilation_h;
    if (row < 0 || row >= p.height) continue;
    const T* source = weight + u * window.kernel_w * strides.c + y * strides.h;
    pack_weights<T, A>({workspace + u * row_length, pitch, window.kernel_w, p.out_width}, 0, 0,
                       source, strides.c, strides.w, p.out_width);
  }
  const Matrix<const A> weights = {workspace, pitch, num_taps(window), p.out_width};
  aggregate_row<T, A, false>(rows, weights, result, y);
}

// Row y of a scatter that runs as an aggregate, with the parameters of flip(). A weight belongs to
// the element of the gradient that it is multiplied with, so weights are packed as the gradient is.
template <typename T, typename A>
void scatter_row_flipped(AggregateRows<T, A>& rows, const T* weight, T* result, A* workspace,
                         int64_t y) {
  const LocalParams& p = rows.p;
  const Window& window = p.window;
  const Strides& strides = p.second;
  const int64_t taps = num_taps(window), pitch = rows.pitch;
  for (int64_t u = 0; u < window.kernel_h; ++u) {
    const int64_t row = y + u * window.dilation_h - window.padding_h;
    if (row < 0 || row >= p.height) continue;
    rows.pack(row);
    const T* source = weight + (taps - 1 - u * window.kernel_w) * strides.c + row * strides.h;
    const Matrix<A> to = {workspace + u * weight_rows<T>(window.kernel_w) * pitch, pitch,
                          window.kernel_w, p.width};
    pack_weights<T, A>(to, window.padding_w, window.dilation_w, source, -strides.c, strides.w,
                       p.width);
  }
  const Matrix<const A> weights = {workspace, pitch, taps, pitch};
  aggregate_row<T, A, true>(rows, weights, result, y);
}

// Row y of a correlate.
template <typename T, typename A>
void correlate_packed_row(PackedRows<T, A, kChannelPacking<T>>& keys, const T* query, T* result,
                          A* workspace, int64_t y) {
  const LocalParams& p = keys.p;
  const int64_t pitch = round_up(p.out_width);
  const Matrix<A> queries = {workspace, pitch, keys.channels, p.out_width};
  const Matrix<A> logits = {workspace + p.channels * pitch, pitch, num_taps(p.window), p.out_width};
  pack_queries<kChannelPacking<T>, T, A>(queries, query + y * p.first.h, p.channels, p.first.c,
                                         p.first.w);
  zero_columns(queries, p.out_width);
  correlate_row<T, A>(keys, queries, logits, y);
  unpack_matrix<T, A>(result + y * p.result.h, p.result.c, p.result.w, logits);
}

// Adds the products of one tap to the sums of a row of a scatter: element x of the output row goes
// to every stride-th column.
template <typename T, typename A>
inline void scatter_tap(const LocalParams& p, const T* grad, const T* weight, A* sums, int64_t t) {
  const Window& window = p.window;
  const Strides &grads = p.first, &weights = p.second;
  const Range outputs =
      outputs_inside(t, window.stride_w, window.dilation_w, window.padding_w, p.width, p.out_width);
  if (outputs.begin >= outputs.end) return;
  const int64_t column = outputs.begin * window.stride_w + t * window.dilation_w - window.padding_w;
  const T* tap_weight = weight + outputs.begin * weights.w;
  for (int64_t d = 0; d < p.channels; ++d) {
    // nothing else points into the sums, which lets the compiler vectorise the loop
    A* __restrict__ target = sums + d * p.width + column;
    const T* source = grad + d * grads.c + outputs.begin * grads.w;
    for (int64_t x = 0; x < outputs.end - outputs.begin; ++x)
      target[x * window.stride_w] +=
          load<A>(tap_weight[x * weights.w]) * load<A>(source[x * grads.w]);
  }
}

// Adds the products of one tap to the sums of a row of a scatter with shifted windows. The outputs
// at both ends go to one column.
template <typename T, typename A>
void scatter_shifted_tap(const LocalParams& p, const T* grad, const T* weight, A* sums, int64_t t) {
  const Strides &grads = p.first, &weights = p.second;
  const int64_t begin = p.window.padding_w, end = p.width - p.window.padding_w;
  for (int64_t d = 0; d < p.channels; ++d) {
    const T* source = grad + d * grads.c;
    A* __restrict__ target = sums + d * p.width;
    const auto product = [&](int64_t x) {
      return load<A>(weight[x * weights.w]) * load<A>(source[x * grads.w]);
    };
    for (int64_t x = 0; x < begin; ++x) target[t] += product(x);
    for (int64_t x = begin; x < end; ++x) target[x - begin + t] += product(x);
    for (int64_t x = end; x < p.width; ++x) target[end - 1 - begin + t] += product(x);
  }
}

// Adds the products of one row of the window to the sums of row y of a scatter with shifted
// windows.
template <typename T, typename A>
void scatter_shifted_row(const LocalParams& p, GroupPointers<T> group, A* sums, int64_t y,
                         int64_t u) {
  const Window& window = p.window;
  const Range rows = outputs_starting_at(y - u, window.kernel_h, p.height);
  for (int64_t row = rows.begin; row < rows.end; ++row) {
    const T* grad = group.first + row * p.first.h;
    for (int64_t t = 0; t < window.kernel_w; ++t) {
      const T* weight = group.second + (u * window.kernel_w + t) * p.second.c + row * p.second.h;
      scatter_shifted_tap<T, A>(p, grad, weight, sums, t);
    }
  }
}

// Row y of the map of a scatter of any stride: the sum over the taps by which outputs see it.
template <typename T, typename A>
void scatter_row(const LocalParams& p, GroupPointers<T> group, A* sums, int64_t y) {
  const Window& window = p.window;
  const Strides& strides = p.result;
  for (int64_t i = 0; i < p.channels * p.width; ++i) sums[i] = 0;
  for (int64_t u = 0; u < window.kernel_h; ++u) {
    if (window.shifted) {
      scatter_shifted_row<T, A>(p, group, sums, y, u);
      continue;
    }
    const int64_t start = y + window.padding_h - u * window.dilation_h;
    if (start < 0 || start % window.stride_h || start / window.stride_h >= p.out_height) continue;
    const int64_t row = start / window.stride_h;
    const T* grad = group.first + row * p.first.h;
    for (int64_t t = 0; t < window.kernel_w; ++t) {
      const T* weight = group.second + (u * window.kernel_w + t) * p.second.c + row * p.second.h;
      scatter_tap<T, A>(p, grad, weight, sums, t);
    }
  }
  T* result = group.result + y * strides.h;
  for (int64_t d = 0; d < p.channels; ++d)
    for (int64_t x = 0; x < p.width; ++x)
      result[d * strides.c + x * strides.w] = store<T>(sums[d * p.width + x]);
}

// The weights of row y. In a flipped scatter, those of an output lie at the positions that it sees:
// from the last tap of the window backwards, one step of the dilation further with each tap.
template <typename T>
inline WeightView<T> weight_view(const LocalParams& p, const T* weight, int64_t y, bool flipped) {
  const Window& window = p.window;
  const Strides& strides = p.second;
  if (!flipped) return {weight + y * strides.h, window.kernel_w * strides.c, strides.c, strides.w};
  const T* last_tap = weight + (num_taps(window) - 1) * strides.c;
  return {last_tap + (y - window.padding_h) * strides.h - window.padding_w * strides.w,
          window.dilation_h * strides.h - window.kernel_w * strides.c,
          window.dilation_w * strides.w - strides.c, strides.w};
}

// Packs the weights of row y in pairs, with zeros for taps in columns outside the map. The view may
// reach beyond the tensor there.
template <typename T, typename A>
PairView<A> pack_pair_weights(const LocalParams& p, WeightView<T> weights, A* workspace,
                              int64_t y) {
  const Window& window = p.window;
  const int64_t pitch = round_up(p.out_width), row_stride = num_pairs(window.kernel_w) * pitch;
  const Range rows = taps_inside(y * window.stride_h - window.padding_h, window.dilation_h,
                                 p.height, window.kernel_h);
  const auto pack_tap = [&](A* target, int64_t u, int64_t t) {
    const Range outputs = outputs_inside(t, window.stride_w, window.dilation_w, window.padding_w,
                                         p.width, p.out_width);
    const int64_t count = int_max(outputs.end - outputs.begin, 0);
    const T* source = weights.data + u * weights.row_stride + t * weights.tap_stride +
                      outputs.begin * weights.output_stride;
    pack_padded_row(target, pitch, count ? outputs.begin : 0, source, weights.output_stride, count);
  };
  A* second = workspace + window.kernel_h * row_stride;
  for (int64_t u = rows.begin; u < rows.end; ++u)
    for (int64_t t = 0; t < window.kernel_w; t += 2) {
      A* pairs = workspace + u * row_stride + t / 2 * pitch;
      const bool has_second = t + 1 < window.kernel_w;
      pack_tap(pairs, u, t);
      if (has_second) pack_tap(second, u, t + 1);
      join_rows<A>(pairs, pitch, second, has_second ? pitch : 0);
    }
  return {workspace, row_stride, pitch};
}

// Rows [begin, end) of an aggregate or a flipped scatter on a channels-last map.
template <typename T, typename A>
void aggregate_channels_last(const LocalParams& p, const LocalPointers& pointers, bool flipped,
                             A* workspace, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    const RowIndex index = row_index(item, p.result_rows, p.groups, true);
    const GroupPointers<T> group = group_pointers<T>(p, pointers, index);
    const int64_t y = index.row;
    const WeightView<T> weights = weight_view<T>(p, group.second, y, flipped);
    T* result = group.result + y * p.result.h;
    if constexpr (kDotsPairs<T>) {
      // pairs of weights have zeros for what lies outside the map
      if (!p.window.shifted) {
        const PairView<A> pairs = pack_pair_weights<T, A>(p, weights, workspace, y);
        aggregate_pair_span<T, A>(p, group.first, pairs, result, y, 0, p.out_width);
        continue;
      }
    }
    aggregate_span<T, A>(p, group.first, weights, result, y, 0, p.out_width);
  }
}

// Rows [begin, end) of a scatter of any stride, or of shifted windows, on a channels-last map.
template <typename T, typename A>
void scatter_channels_last(const LocalParams& p, const LocalPointers& pointers, int64_t begin,
                           int64_t end) {
  const Window& window = p.window;
  ReachingTaps rows, columns;
  for (int64_t item = begin; item < end; ++item) {
    const RowIndex index = row_index(item, p.result_rows, p.groups, true);
    const GroupPointers<T> group = group_pointers<T>(p, pointers, index);
    const int64_t y = index.row;
    T* result = group.result + y * p.result.h;
    if (window.shifted) {
      rows.find_shifted(y, window.kernel_h, p.height);
      scatter_shifted_span<T, A>(p, group.first, group.second, result, rows);
      continue;
    }
    rows.find(y, window.kernel_h, window.stride_h, window.dilation_h, window.padding_h,
              p.out_height);
    for (int64_t x = 0; x < p.width; ++x, result += p.result.w) {
      columns.find(x, window.kernel_w, window.stride_w, window.dilation_w, window.padding_w,
                   p.out_width);
      scatter_position<T, A>(p, group.first, group.second, result, 0, rows, columns);
    }
  }
}

// Rows [begin, end) of a scatter of any stride on any other map.
template <typename T, typename A>
void scatter_rows(const LocalParams& p, const LocalPointers& pointers, A* sums, int64_t begin,
                  int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    const RowIndex index = row_index(item, p.result_rows, p.groups, p.cached_groups > 1);
    scatter_row<T, A>(p, group_pointers<T>(p, pointers, index), sums, index.row);
  }
}

// Rows [begin, end) of a primitive that packs the rows of its map. `p` are the parameters of flip()
// if a scatter is flipped.
template <Primitive kPrimitive, typename T, typename A>
void run_packed(const LocalParams& p, const LocalPointers& pointers, char* memory, int64_t begin,
                int64_t end) {
  constexpr bool kCorrelates = kPrimitive == kCorrelate;
  using Rows = PackedRows<T, A, kCorrelates ? kChannelPacking<T> : kTapPacking<T>>;
  const bool all_groups = p.cached_groups > 1;
  const int64_t bytes = packed_rows_bytes(p, sizeof(A));
  A* workspace = reinterpret_cast<A*>(memory + p.cached_groups * bytes);
  Rows::invalidate(memory, p.cached_groups, bytes);
  for (int64_t item = begin; item < end; ++item) {
    const RowIndex index = row_index(item, p.result_rows, p.groups, all_groups);
    const GroupPointers<T> group = group_pointers<T>(p, pointers, index);
    // the map that the window slides over is the second operand of a correlate
    Rows rows(p, kCorrelates ? p.second : p.first, memory + (all_groups ? index.group * bytes : 0),
              kCorrelates ? group.second : group.first);
    if constexpr (kCorrelates)
      correlate_packed_row<T, A>(rows, group.first, group.result, workspace, index.row);
    else if constexpr (kPrimitive == kScatter)
      scatter_row_flipped<T, A>(rows, group.second, group.result, workspace, index.row);
    else
      aggregate_packed_row<T, A>(rows, group.second, group.result, workspace, index.row);
  }
}

// Rows [begin, end) of the result of a primitive. `memory` has p.workspace_bytes.
template <typename T, typename A>
void run_local(const LocalParams& p, const LocalPointers& pointers, void* memory, int64_t begin,
               int64_t end) {
  const bool scatter = p.primitive == kScatter, flipped = scatter && can_flip(p);
  const LocalParams params = flipped ? flip(p) : p;
  const bool channels_last = runs_channels_last(p);
  char* workspace = static_cast<char*>(memory);
  A* numbers = static_cast<A*>(memory);
  if (scatter && !flipped && channels_last)
    scatter_channels_last<T, A>(p, pointers, begin, end);
  else if (scatter && !flipped)
    scatter_rows<T, A>(p, pointers, numbers, begin, end);
  else if (channels_last)
    aggregate_channels_last<T, A>(params, pointers, flipped, numbers, begin, end);
  else if (scatter)
    run_packed<kScatter, T, A>(params, pointers, workspace, begin, end);
  else if (p.primitive == kCorrelate)
    run_packed<kCorrelate, T, A>(params, pointers, workspace, begin, end);
  else
    run_packed<kAggregate, T, A>(params, pointers, workspace, begin, end);
}

}  // namespace mmrednet::MMREDNET_ISA
