// Local attention, sixteen outputs at a time: their logits stay in the first-level cache.

#pragma once

#include <cstdint>
#include <type_traits>

#include "border_lanes.h"
#include "correlate.h"
#include "integers.h"
#include "isa.h"
#include "matrix.h"
#include "packed_rows.h"
#include "params.h"
#include "simd.h"
#include "simd_exp2.h"
#include "simd_log.h"
#include "simd_pairs.h"
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
  // an element for each tap, or null; where windows are shifted, that of outputs in the interior
  const A* bias;
};

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
      const bool masked =
          !window.shifted && x < p.out_width && (x < inside.begin || x >= inside.end);
      row[x] = masked ? -static_cast<A>(__builtin_inf()) : 0;
    }
  }
}

// Where tensors are multiplied in pairs, copies a table (window rows, channels / 2) with zeros for
// the other channels of the pairs that it shares with the other half. `first` is the channel of the
// first pair, `begin` that of the table.
template <typename T, typename A>
void pack_table(T* target, const A* table, int64_t rows, int64_t half, int64_t first,
                int64_t begin) {
  const int64_t length = 2 * num_pairs(half);
  for (int64_t u = 0; u < rows; ++u)
    for (int64_t i = 0; i < length; ++i) {
      const int64_t channel = first + i - begin;
      const bool is_inside = channel >= 0 && channel < half;
      target[u * length + i] = is_inside ? store<T>(table[u * half + channel]) : T{};
    }
}

// The logits of a row of one head, in the workspace of a thread. Both directions begin with them.
template <Relation kRelation, typename T, typename A>
struct LogitRows {
  static constexpr Packing kPacking = kRelation == kProduct ? kChannelPacking<T> : kNumbers;
  using Keys = PackedRows<T, A, kPacking>;

  const AttentionParams& params;
  const AttentionPointers& pointers;
  const LocalParams &k = params.keys, &v = params.values;
  const Window& window = k.window;
  const int64_t taps = num_taps(window), pitch = round_up(k.out_width), half = k.channels / 2;
  const int64_t key_bytes = packed_rows_bytes(k, sizeof(A));
  const int64_t value_bytes = packed_rows_bytes(v, sizeof(A));
  // packed rows of one head or of all of them
  char *key_rows, *value_rows;
  // a matrix row for each channel, row or column of the window; a column for each output
  Matrix<A> queries, grads, row_terms, column_terms, mask;
  // a row for each tap; a column for each of 16 outputs
  Matrix<A> logits;
  // the same, the bias of outputs of which some have shifted windows
  Matrix<A> border_bias;
  // free memory behind that
  A* free;
  // rows of the window that meet the map
  Range window_rows = {};
  LogitTerms<A> terms = {};
  int64_t y = 0;

  LogitRows(const AttentionParams& attention, const AttentionPointers& tensors, void* memory)
      : params(attention), pointers(tensors) {
    key_rows = static_cast<char*>(memory);
    value_rows = key_rows + k.cached_groups * key_bytes;
    Keys::invalidate(key_rows, k.cached_groups, key_bytes);
    Keys::invalidate(value_rows, k.cached_groups, value_bytes);
    free = reinterpret_cast<A*>(value_rows + k.cached_groups * value_bytes);
    const int64_t query_rows = kPacking == kChannelPairs ? num_pairs(k.channels) : k.channels;
    queries = take(query_rows, pitch);
    grads = take(v.channels, pitch);
    row_terms = take(window.kernel_h, pitch);
    column_terms = take(window.kernel_w, pitch);
    mask = take(window.kernel_w, pitch);
    logits = take(taps, kSimdWidth);
    border_bias = take(taps, kSimdWidth);
    mask_columns(k, mask);
    if constexpr (kPacking == kChannelPairs)
      if (pointers.rows) pack_tables();
  }

  Matrix<A> take(int64_t matrix_rows, int64_t columns) {
    const Matrix<A> matrix = {free, columns, matrix_rows, columns};
    free += matrix_rows * columns;
    return matrix;
  }

  // The packed keys of one head.
  Keys keys_of(RowIndex index) const {
    const T* key =
        static_cast<const T*>(pointers.key) + index.image * k.second.b + index.group * k.second.g;
    return Keys(k, k.second, key_rows + slot_of(index) * key_bytes, key);
  }

  // The packed values of one head.
  template <typename Values>
  Values values_of(RowIndex index) const {
    const T* value =
        static_cast<const T*>(pointers.value) + index.image * v.first.b + index.group * v.first.g;
    return Values(v, v.first, value_rows + slot_of(index) * value_bytes, value);
  }

  // Packs queries and keys for a row of outputs.
  void begin_row(RowIndex index, Keys& keys) {
    y = index.row;
    window_rows = taps_inside(first_row(k, y), window.dilation_h, k.height, window.kernel_h);
    keys.pack_window(y);
    pack_row<kPacking>(pointers.query, k.first, index, k.channels, queries);
    terms = window.shifted ? shifted_terms(index.group) : logit_terms(index.group);
  }

  // Packs a row of one head of a tensor that has the size of the outputs.
  template <Packing kRowPacking>
  void pack_row(const void* tensor, const Strides& strides, RowIndex index, int64_t channels,
                Matrix<A> target) const {
    const T* source = static_cast<const T*>(tensor) + index.image * strides.b +
                      index.group * strides.g + index.row * strides.h;
    const Matrix<A> outputs = {target.data, pitch, target.rows, k.out_width};
    pack_queries<kRowPacking, T, A>(outputs, source, channels, strides.c, strides.w);
    zero_columns(outputs, k.out_width);
  }

  // The row of the map that a row of the window meets.
  int64_t map_row(int64_t u) const { return first_row(k, y) + u * window.dilation_h; }

  // Calls `run` with a number of taps, as a type, the first of them, its row and its column, for
  // all taps in rows that meet the map.
  template <typename Run>
  void for_inner_taps(Run run) const {
    for (int64_t u = window_rows.begin; u < window_rows.end; ++u)
      for_taps(window.kernel_w,
               [&](auto count, int64_t t) { run(count, u * window.kernel_w + t, u, t); });
  }

  // Computes the logits of 16 outputs from x on. Returns the largest of each.
  Simd<A> compute_logits(const Keys& keys, int64_t x) {
    if (terms.bias && has_border(k, x)) fill_border_bias(x);
    Simd<A> maximum = {};
    keys.with_lanes(x, [&](const auto& lanes) { maximum = lane_logits(keys, lanes, x); });
    return maximum;
  }

 private:
  // pairs of the tables of all heads
  T *row_tables = nullptr, *column_tables = nullptr;

  template <typename Lanes>
  Simd<A> lane_logits(const Keys& keys, const Lanes& lanes, int64_t x) const {
    const Matrix<const A> outputs = Matrix<const A>(queries).from(0, x);
    Simd<A> maximum = Simd<A>{} - static_cast<A>(__builtin_inf());
    for_inner_taps([&](auto count, int64_t tap, int64_t u, int64_t t) {
      Simd<A> sums[count];
      for (int n = 0; n < count; ++n) sums[n] = position_terms<Lanes>(x, u, t + n);
      add_relations<kRelation, T, A, count>(keys, lanes, outputs, map_row(u), t, sums);
      for (int n = 0; n < count; ++n) {
        store_simd<A>(logits.data + (tap + n) * kSimdWidth, sums[n]);
        maximum = sums[n] > maximum ? sums[n] : maximum;
      }
    });
    return maximum;
  }

  // What is added to the logits of 16 outputs from x on and tap (u, t).
  template <typename Lanes>
  Simd<A> position_terms(int64_t x, int64_t u, int64_t t) const {
    const int64_t tap = u * window.kernel_w + t;
    Simd<A> sum = load_simd<A>(terms.columns + t * pitch + x);
    if (terms.rows) sum += load_simd<A>(terms.rows + u * pitch + x);
    if (!terms.bias) return sum;
    if constexpr (std::is_same_v<Lanes, BorderLanes<A>>)
      return sum + load_simd<A>(border_bias.data + tap * kSimdWidth);
    else
      return sum + terms.bias[tap];
  }

  // The groups of a row follow one another if all of them are cached.
  int64_t slot_of(RowIndex index) const { return k.cached_groups > 1 ? index.group : 0; }

  void pack_tables() {
    const int64_t length = 2 * num_pairs(half), first = half / 2 * 2;
    row_tables = reinterpret_cast<T*>(free);
    column_tables = row_tables + k.groups * window.kernel_h * length;
    free = reinterpret_cast<A*>(column_tables + k.groups * window.kernel_w * length);
    for (int64_t head = 0; head < k.groups; ++head) {
      const int64_t row = head * window.kernel_h, column = head * window.kernel_w;
      pack_table<T, A>(row_tables + row * length, static_cast<const A*>(pointers.rows) + row * half,
                       window.kernel_h, half, 0, 0);
      pack_table<T, A>(column_tables + column * length,
                       static_cast<const A*>(pointers.columns) + column * half, window.kernel_w,
                       half, first, half);
    }
  }

  // The terms of relative position are products of tables with the queries: that of the rows of the
  // window with the first half of the channels, that of its columns with the second half.
  LogitTerms<A> logit_terms(int64_t head) {
    const A* bias = static_cast<const A*>(pointers.bias);
    if (bias) bias += head * taps;
    if (!pointers.rows) return {nullptr, mask.data, bias};
    if constexpr (kPacking == kChannelPairs)
      multiply_pair_tables(head);
    else
      multiply_tables(head);
    for (int64_t i = 0; i < window.kernel_w * pitch; ++i) column_terms.data[i] += mask.data[i];
    return {row_terms.data, column_terms.data, bias};
  }

  // Shifted windows have a bias (heads, places, taps). The centre of a window is its place number
  // padding_w.
  LogitTerms<A> shifted_terms(int64_t head) const {
    const A* bias = static_cast<const A*>(pointers.bias);
    if (!bias) return {nullptr, mask.data, nullptr};
    const int64_t place = (y - first_row(k, y)) * window.kernel_w + window.padding_w;
    return {nullptr, mask.data, bias + (head * taps + place) * taps};
  }

  // Fills the bias of 16 outputs from x on: that of the interior, then that of the few outputs
  // which stand elsewhere in their windows.
  void fill_border_bias(int64_t x) {
    for (int64_t tap = 0; tap < taps; ++tap)
      store_simd<A>(border_bias.data + tap * kSimdWidth, terms.bias[tap] - Simd<A>{});
    for (int64_t output = x; output < int_min(x + kSimdWidth, k.width); ++output) {
      const int64_t distance = output - first_column(k, output) - window.padding_w;
      if (distance == 0) continue;
      const A* source = terms.bias + distance * taps;
      A* target = border_bias.data + output - x;
      for (int64_t tap = 0; tap < taps; ++tap) target[tap * kSimdWidth] = source[tap];
    }
  }

  void multiply_tables(int64_t head) {
    const A* row_table = static_cast<const A*>(pointers.rows) + head * window.kernel_h * half;
    const A* column_table = static_cast<const A*>(pointers.columns) + head * window.kernel_w * half;
    const Matrix<const A> row_queries = {queries.data, pitch, half, pitch};
    const Matrix<const A> column_queries = {queries.data + half * pitch, pitch, half, pitch};
    multiply<A>({row_table, half, window.kernel_h, half}, row_queries, nullptr, false, row_terms);
    multiply<A>({column_table, half, window.kernel_w, half}, column_queries, nullptr, false,
                column_terms);
  }

  void multiply_pair_tables(int64_t head) {
    const int64_t pairs = num_pairs(half), length = 2 * pairs;
    const Matrix<const A> row_queries = {queries.data, pitch, pairs, pitch};
    const Matrix<const A> column_queries = {queries.data + half / 2 * pitch, pitch, pairs, pitch};
    multiply_pairs<T, A>(row_tables + head * window.kernel_h * length, length, window.kernel_h,
                         row_queries, row_terms);
    multiply_pairs<T, A>(column_tables + head * window.kernel_w * length, length, window.kernel_w,
                         column_queries, column_terms);
  }
};

// An output without a tap inside the map has weights of zero. Infinity minus infinity would give
// NaN.
template <typename A>
inline Simd<A> softmax_base(Simd<A> maximum) {
  const Simd<A> lowest = Simd<A>{} - static_cast<A>(__builtin_inf());
  return maximum == lowest ? Simd<A>{} : maximum;
}

// Replaces the logits of 16 outputs by exponentials, of pairs of taps where values are in pairs.
// Returns their sum.
template <Relation kRelation, typename T, typename A>
inline Simd<A> exponentials(const LogitRows<kRelation, T, A>& rows, Simd<A> base) {
  const int64_t kernel_w = rows.window.kernel_w;
  Simd<A> sum = {};
  const auto exponential = [&](const A* logit) {
    const Simd<A> weight = softmax_weight<T>(load_simd<A>(logit) - base);
    sum += weight;
    return weight;
  };
  for (int64_t u = rows.window_rows.begin; u < rows.window_rows.end; ++u) {
    const A* logit = rows.logits.data + u * kernel_w * kSimdWidth;
    // never ahead of the logits that are read
    A* target = rows.logits.data + u * weight_rows<T>(kernel_w) * kSimdWidth;
    if constexpr (kDotsPairs<T>) {
      for (int64_t t = 0; t < kernel_w; t += 2, target += kSimdWidth) {
        const Simd<A> first = exponential(logit + t * kSimdWidth);
        const bool has_second = t + 1 < kernel_w;
        const Simd<A> second = has_second ? exponential(logit + (t + 1) * kSimdWidth) : Simd<A>{};
        store_simd<A>(target, make_pairs<A>(first, second));
      }
    } else {
      for (int64_t t = 0; t < kernel_w; ++t, target += kSimdWidth)
        store_simd<A>(target, exponential(logit + t * kSimdWidth));
    }
  }
  return sum;
}

// Rows [begin, end) of all heads and images. `memory` has params.workspace_bytes.
template <Relation kRelation, typename T, typename A>
void run_relation(const AttentionParams& params, const AttentionPointers& pointers, void* memory,
                  int64_t begin, int64_t end) {
  const LocalParams &k = params.keys, &v = params.values;
  LogitRows<kRelation, T, A> rows(params, pointers, memory);
  for (int64_t item = begin; item < end; ++item) {
    const RowIndex index = row_index(item, k.result_rows, k.groups, k.cached_groups > 1);
    auto keys = rows.keys_of(index);
    auto values = rows.template values_of<AggregateRows<T, A>>(index);
    rows.begin_row(index, keys);
    values.pack_window(index.row);
    T* result =
        static_cast<T*>(pointers.result) + index.image * v.result.b + index.group * v.result.g;
    A* logsumexp = static_cast<A*>(pointers.logsumexp);
    const int64_t row = (index.image * k.groups + index.group) * k.result_rows + index.row;
    for (int64_t x = 0; x < k.out_width; x += kSimdWidth) {
      const Simd<A> base = softmax_base<A>(rows.compute_logits(keys, x));
      const Simd<A> sum = exponentials(rows, base);
      const Simd<A> factor = sum == 0 ? Simd<A>{} : 1 / sum;
      aggregate_outputs<T, A, false>(values, rows.logits, result, index.row, x, &factor);
      if (!logsumexp) continue;
      store_columns<A, A>(logsumexp + row * k.out_width + x, base + log_nonnegative(sum),
                          k.out_width - x);
    }
  }
}

template <typename T, typename A>
void run_attention(const AttentionParams& params, const AttentionPointers& pointers, void* memory,
                   int64_t begin, int64_t end) {
  if (params.relation == kProduct)
    run_relation<kProduct, T, A>(params, pointers, memory, begin, end);
  else
    run_relation<kAbsoluteDifference, T, A>(params, pointers, memory, begin, end);
}

}  // namespace mmrednet::MMREDNET_ISA
