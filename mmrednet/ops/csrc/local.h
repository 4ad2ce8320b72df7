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
void aggregate_packed_row(PackedRows<T, A>& rows, const T* weight, T* result, A* workspace,
                          int64_t y) {
  const LocalParams& p = rows.p;
  const Window& window = p.window;
  const Strides& strides = p.second;
  const int64_t pitch = round_up(p.out_width);
  rows.pack_window(y);
  for (int64_t u = 0; u < window.kernel_h; ++u) {
    const int64_t row = y * window.stride_h + u * window.dilation_h - window.padding_h;
    if (row < 0 || row >= p.height) continue;
    for (int64_t k = u * window.kernel_w; k < (u + 1) * window.kernel_w; ++k)
      pack_padded_row(workspace + k * pitch, pitch, 0, weight + k * strides.c + y * strides.h,
                      strides.w, p.out_width);
  }
  const Matrix<const A> weights = {workspace, pitch, num_taps(window), p.out_width};
  aggregate_row<T, A, false>(rows, weights, result, y);
}

// Row y of a scatter that runs as an aggregate, with the parameters of flip(). A weight belongs to
// the element of the gradient that it is multiplied with, so weights are packed as the gradient is.
template <typename T, typename A>
void scatter_row_flipped(PackedRows<T, A>& rows, const T* weight, T* result, A* workspace,
                         int64_t y) {
  const LocalParams& p = rows.p;
  const Window& window = p.window;
  const Strides& strides = p.second;
  const int64_t taps = num_taps(window);
  for (int64_t u = 0; u < window.kernel_h; ++u) {
    const int64_t row = y + u * window.dilation_h - window.padding_h;
    if (row < 0 || row >= p.height) continue;
    rows.pack(row);
    for (int64_t k = u * window.kernel_w; k < (u + 1) * window.kernel_w; ++k) {
      const T* source = weight + (taps - 1 - k) * strides.c + row * strides.h;
      pack_padded_row(workspace + k * rows.pitch, rows.pitch, window.padding_w, source, strides.w,
                      p.width);
    }
  }
  const Matrix<const A> weights = {workspace, rows.pitch, taps, rows.pitch};
  aggregate_row<T, A, true>(rows, weights, result, y);
}

// Row y of a correlate.
template <typename T, typename A>
void correlate_packed_row(PackedRows<T, A>& keys, const T* query, T* result, A* workspace,
                          int64_t y) {
  const LocalParams& p = keys.p;
  const int64_t pitch = round_up(p.out_width);
  const Matrix<A> queries = {workspace, pitch, p.channels, p.out_width};
  const Matrix<A> logits = {workspace + p.channels * pitch, pitch, num_taps(p.window), p.out_width};
  pack_matrix<T, A>(queries, query + y * p.first.h, p.first.c, p.first.w);
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

// Row y of the map of a scatter of any stride: the sum over the taps by which outputs see it.
template <typename T, typename A>
void scatter_row(const LocalParams& p, GroupPointers<T> group, A* sums, int64_t y) {
  const Window& window = p.window;
  const Strides& strides = p.result;
  for (int64_t i = 0; i < p.channels * p.width; ++i) sums[i] = 0;
  for (int64_t u = 0; u < window.kernel_h; ++u) {
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

// Rows [begin, end) of an aggregate or a flipped scatter on a channels-last map.
template <typename T, typename A>
void aggregate_channels_last(const LocalParams& p, const LocalPointers& pointers, bool flipped,
                             int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    const RowIndex index = row_index(item, p.result_rows, p.groups, true);
    const GroupPointers<T> group = group_pointers<T>(p, pointers, index);
    const int64_t y = index.row;
    aggregate_span<T, A>(p, group.first, weight_view<T>(p, group.second, y, flipped),
                         group.result + y * p.result.h, y, 0, p.out_width);
  }
}

// Rows [begin, end) of a scatter of any stride on a channels-last map.
template <typename T, typename A>
void scatter_channels_last(const LocalParams& p, const LocalPointers& pointers, int64_t begin,
                           int64_t end) {
  const Window& window = p.window;
  ReachingTaps rows, columns;
  for (int64_t item = begin; item < end; ++item) {
    const RowIndex index = row_index(item, p.result_rows, p.groups, true);
    const GroupPointers<T> group = group_pointers<T>(p, pointers, index);
    const int64_t y = index.row;
    rows.find(y, window.kernel_h, window.stride_h, window.dilation_h, window.padding_h,
              p.out_height);
    for (int64_t x = 0; x < p.width; ++x) {
      columns.find(x, window.kernel_w, window.stride_w, window.dilation_w, window.padding_w,
                   p.out_width);
      T* result = group.result + y * p.result.h + x * p.result.w;
      scatter_position<T, A>(p, group.first, group.second, result, rows, columns);
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
template <typename T, typename A>
void run_packed(const LocalParams& p, const LocalPointers& pointers, char* memory, int64_t begin,
                int64_t end) {
  const bool correlate = p.primitive == kCorrelate, all_groups = p.cached_groups > 1;
  const int64_t bytes = packed_rows_bytes(p, sizeof(A));
  A* workspace = reinterpret_cast<A*>(memory + p.cached_groups * bytes);
  PackedRows<T, A>::invalidate(memory, p.cached_groups, bytes);
  for (int64_t item = begin; item < end; ++item) {
    const RowIndex index = row_index(item, p.result_rows, p.groups, all_groups);
    const GroupPointers<T> group = group_pointers<T>(p, pointers, index);
    // the map that the window slides over is the second operand of a correlate
    const Strides& strides = correlate ? p.second : p.first;
    PackedRows<T, A> rows(p, strides, memory + (all_groups ? index.group * bytes : 0),
                          correlate ? group.second : group.first);
    if (correlate)
      correlate_packed_row<T, A>(rows, group.first, group.result, workspace, index.row);
    else if (p.primitive == kScatter)
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
  if (scatter && !flipped) {
    if (channels_last)
      scatter_channels_last<T, A>(p, pointers, begin, end);
    else
      scatter_rows<T, A>(p, pointers, static_cast<A*>(memory), begin, end);
  } else if (channels_last) {
    aggregate_channels_last<T, A>(params, pointers, flipped, begin, end);
  } else {
    run_packed<T, A>(params, pointers, static_cast<char*>(memory), begin, end);
  }
}

}  // namespace mmrednet::MMREDNET_ISA
