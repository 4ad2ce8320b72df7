// Local attention row by row: the logits of one row of outputs stay in the workspace, which fits
// the second-level cache.

#pragma once

#include <cstdint>

#include "correlate.h"
#include "integers.h"
#include "isa.h"
#include "matrix.h"
#include "packed_rows.h"
#include "params.h"
#include "simd.h"
#include "simd_exp.h"
#include "small_gemm.h"
#include "transpose.h"
#include "window.h"
#include "workspace.h"

namespace mmrednet::MMREDNET_ISA {

// What is added to the logits of a row of outputs.
template <typename A>
struct LogitTerms {
  // relative position: a matrix row for each row and each column of the window; `rows` may be null
  const A *rows, *columns;
  // an element for each tap, or null
  const A* bias;
};

// Softmax over the taps: replaces the logits of row y by weights. Stores the logarithms of the sums
// in `logsumexp`, unless it is null. Taps in rows outside the map are left alone.
template <typename A>
void softmax_row(const LocalParams& p, const LogitTerms<A>& terms, Matrix<A> logits, int64_t y,
                 A* logsumexp) {
  const Window& window = p.window;
  const int64_t pitch = logits.pitch, kernel_w = window.kernel_w;
  const Simd<A> lowest = Simd<A>{} - static_cast<A>(__builtin_inf());
  const Range rows = taps_inside(y * window.stride_h - window.padding_h, window.dilation_h,
                                 p.height, window.kernel_h);
  const int64_t begin = rows.begin * kernel_w, end = rows.end * kernel_w;
  for (int64_t x = 0; x < p.out_width; x += kSimdWidth) {
    Simd<A> maximum = lowest, sum = {};
    for (int64_t k = begin; k < end; ++k) {
      A* tap = logits.data + k * pitch + x;
      Simd<A> logit = load_simd<A>(tap) + load_simd<A>(terms.columns + k % kernel_w * pitch + x);
      if (terms.rows) logit += load_simd<A>(terms.rows + k / kernel_w * pitch + x);
      if (terms.bias) logit += terms.bias[k];
      store_simd<A>(tap, logit);
      maximum = logit > maximum ? logit : maximum;
    }
    // An output without a tap inside the map has weights of zero. Infinity minus infinity would
    // give NaN.
    const Simd<A> base = maximum == lowest ? Simd<A>{} : maximum;
    for (int64_t k = begin; k < end; ++k) {
      A* tap = logits.data + k * pitch + x;
      const Simd<A> weight = exp_nonpositive(load_simd<A>(tap) - base);
      store_simd<A>(tap, weight);
      sum += weight;
    }
    const Simd<A> factor = sum == 0 ? Simd<A>{} : 1 / sum;
    for (int64_t k = begin; k < end; ++k) {
      A* tap = logits.data + k * pitch + x;
      store_simd<A>(tap, load_simd<A>(tap) * factor);
    }
    if (!logsumexp) continue;
    const int64_t outputs = int_min(p.out_width - x, kSimdWidth);
    for (int64_t i = 0; i < outputs; ++i) logsumexp[x + i] = base[i] + __builtin_log(sum[i]);
  }
}

// Fills a matrix row for each column of the window: minus infinity for the outputs whose tap lies
// outside the map, zero for the others.
template <typename A>
void mask_columns(const LocalParams& p, Matrix<A> columns) {
  const Window& window = p.window;
  for (int64_t t = 0; t < window.kernel_w; ++t) {
    const Range inside = outputs_inside(t, window.stride_w, window.dilation_w, window.padding_w,
                                        p.width, p.out_width);
    A* row = columns.data + t * columns.pitch;
    for (int64_t x = 0; x < columns.pitch; ++x) {
      const bool masked = x < p.out_width && (x < inside.begin || x >= inside.end);
      row[x] = masked ? -static_cast<A>(__builtin_inf()) : 0;
    }
  }
}

// The gradient of the softmax of a row: replaces the gradients of the weights by those of the
// logits, weight * (grad - sum of weight * grad).
template <typename A>
void softmax_backward_row(Matrix<const A> weights, Matrix<A> grads) {
  for (int64_t x = 0; x < grads.pitch; x += kSimdWidth) {
    Simd<A> sum = {};
    for (int64_t k = 0; k < grads.rows; ++k)
      sum += load_simd<A>(weights.data + k * weights.pitch + x) *
             load_simd<A>(grads.data + k * grads.pitch + x);
    for (int64_t k = 0; k < grads.rows; ++k) {
      A* grad = grads.data + k * grads.pitch + x;
      const Simd<A> weight = load_simd<A>(weights.data + k * weights.pitch + x);
      store_simd<A>(grad, weight * (load_simd<A>(grad) - sum));
    }
  }
}

// Local attention of one row of one head after another, in the workspace of a thread.
template <typename T, typename A>
struct AttentionRows {
  const AttentionParams& params;
  const AttentionPointers& pointers;
  const LocalParams &k = params.keys, &v = params.values;
  const Window& window = k.window;
  const int64_t taps = num_taps(window), pitch = round_up(k.out_width);
  const int64_t key_bytes = packed_rows_bytes(k, sizeof(A));
  const int64_t value_bytes = packed_rows_bytes(v, sizeof(A));
  // packed rows of one head or of all of them
  char *key_rows, *value_rows;
  // a matrix row for each channel, tap, row or column of the window; a column for each output
  Matrix<A> queries, logits, row_terms, column_terms, mask, grads, grad_logits;

  AttentionRows(const AttentionParams& attention, const AttentionPointers& tensors, void* memory)
      : params(attention), pointers(tensors) {
    key_rows = static_cast<char*>(memory);
    value_rows = key_rows + k.cached_groups * key_bytes;
    PackedRows<T, A>::invalidate(key_rows, k.cached_groups, key_bytes);
    PackedRows<T, A>::invalidate(value_rows, k.cached_groups, value_bytes);
    A* data = reinterpret_cast<A*>(value_rows + k.cached_groups * value_bytes);
    const auto take = [&](int64_t rows) {
      const Matrix<A> matrix = {data, pitch, rows, k.out_width};
      data += rows * pitch;
      return matrix;
    };
    queries = take(k.channels);
    logits = take(taps);
    row_terms = take(window.kernel_h);
    column_terms = take(window.kernel_w);
    mask = take(window.kernel_w);
    grads = take(v.channels);
    grad_logits = take(taps);
    mask_columns(k, mask);
  }

  // A row of outputs: its weights, and what is made with them.
  void run(RowIndex index) {
    const int64_t image = index.image, head = index.group, y = index.row;
    const int64_t cached = k.cached_groups > 1 ? head : 0;
    const T* key = static_cast<const T*>(pointers.key) + image * k.second.b + head * k.second.g;
    const T* value = static_cast<const T*>(pointers.value) + image * v.first.b + head * v.first.g;
    PackedRows<T, A> keys(k, k.second, key_rows + cached * key_bytes, key);
    PackedRows<T, A> values(v, v.first, value_rows + cached * value_bytes, value);
    pack_row(pointers.query, k.first, index, queries);
    if (params.relation == kProduct)
      correlate_row<T, A, kProduct>(keys, queries, logits, y);
    else
      correlate_row<T, A, kAbsoluteDifference>(keys, queries, logits, y);
    const LogitTerms<A> terms = logit_terms(head);
    if (params.backward) {
      softmax_row<A>(k, terms, logits, y, nullptr);
      store_gradients(values, index);
      return;
    }
    A* logsumexp = static_cast<A*>(pointers.logsumexp);
    const int64_t row = (image * k.groups + head) * k.result_rows + y;
    if (logsumexp) logsumexp += row * k.out_width;
    softmax_row(k, terms, logits, y, logsumexp);
    values.pack_window(y);
    T* result = static_cast<T*>(pointers.result) + image * v.result.b + head * v.result.g;
    aggregate_row<T, A, false>(values, logits, result, y);
  }

 private:
  // Packs a row of one head of a tensor that has the size of the outputs.
  void pack_row(const void* tensor, const Strides& strides, RowIndex index, Matrix<A> target) {
    const T* source = static_cast<const T*>(tensor) + index.image * strides.b +
                      index.group * strides.g + index.row * strides.h;
    pack_matrix<T, A>(target, source, strides.c, strides.w);
    zero_columns(target, k.out_width);
  }

  // The terms of relative position are products of tables with the queries: that of the rows of the
  // window with the first half of the channels, that of its columns with the second half.
  LogitTerms<A> logit_terms(int64_t head) {
    const A* bias = static_cast<const A*>(pointers.bias);
    if (bias) bias += head * taps;
    if (!pointers.rows) return {nullptr, mask.data, bias};
    const int64_t half = k.channels / 2;
    const A* rows = static_cast<const A*>(pointers.rows) + head * window.kernel_h * half;
    const A* columns = static_cast<const A*>(pointers.columns) + head * window.kernel_w * half;
    const Matrix<const A> row_queries = {queries.data, pitch, half, pitch};
    const Matrix<const A> column_queries = {queries.data + half * pitch, pitch, half, pitch};
    multiply<A>({rows, half, window.kernel_h, half}, row_queries, nullptr, false,
                {row_terms.data, pitch, window.kernel_h, pitch});
    multiply<A>({columns, half, window.kernel_w, half}, column_queries, nullptr, false,
                {column_terms.data, pitch, window.kernel_w, pitch});
    for (int64_t i = 0; i < window.kernel_w * pitch; ++i) column_terms.data[i] += mask.data[i];
    return {row_terms.data, column_terms.data, bias};
  }

  // Stores the weights and the gradients of the logits of a row.
  void store_gradients(PackedRows<T, A>& values, RowIndex index) {
    pack_row(pointers.grad, params.grad, index, grads);
    correlate_row<T, A>(values, grads, grad_logits, index.row);
    softmax_backward_row<A>(logits, grad_logits);
    const Strides& strides = params.weight;
    const int64_t offset =
        index.image * strides.b + index.group * strides.g + index.row * strides.h;
    A* weight = static_cast<A*>(pointers.weight) + offset;
    A* grad = static_cast<A*>(pointers.grad_logits) + offset;
    unpack_matrix<A, A>(weight, strides.c, strides.w, logits);
    unpack_matrix<A, A>(grad, strides.c, strides.w, grad_logits);
  }
};

// Rows [begin, end) of all heads and images. `memory` has params.workspace_bytes.
template <typename T, typename A>
void run_attention(const AttentionParams& params, const AttentionPointers& pointers, void* memory,
                   int64_t begin, int64_t end) {
  const LocalParams& k = params.keys;
  AttentionRows<T, A> rows(params, pointers, memory);
  for (int64_t item = begin; item < end; ++item)
    rows.run(row_index(item, k.result_rows, k.groups, k.cached_groups > 1));
}

}  // namespace mmrednet::MMREDNET_ISA
