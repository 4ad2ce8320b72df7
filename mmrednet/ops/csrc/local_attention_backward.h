// The backward pass of local attention. Logits are computed again, sixteen outputs at a time.
//
// The gradients of query and tables are complete. Weights and gradients of logits are stored, for
// the scatters that give the gradients of values and keys.

#pragma once

#include <cstdint>

#include "correlate.h"
#include "integers.h"
#include "isa.h"
#include "local_attention.h"
#include "matrix.h"
#include "packed_rows.h"
#include "params.h"
#include "simd.h"
#include "simd_exp2.h"
#include "simd_pairs.h"
#include "transpose.h"
#include "workspace.h"

namespace mmrednet::MMREDNET_ISA {

// The rows of one head after another, in the workspace of a thread.
template <Relation kRelation, typename T, typename A>
struct GradientRows {
  using Rows = LogitRows<kRelation, T, A>;
  using Keys = typename Rows::Keys;
  static constexpr Packing kValues = kChannelPacking<T>;
  using Values = PackedRows<T, A, kValues>;

  const AttentionParams& params;
  const AttentionPointers& pointers;
  Rows rows;
  const LocalParams &k = rows.k, &v = rows.v;
  const Window& window = k.window;
  const int64_t taps = rows.taps, half = rows.half;
  // for 16 outputs: gradients of the logits, and those by which a channel of the keys differs from
  // the query; the gradient of the query; and sums for the tables
  Matrix<A> grad_logits, signed_grads, grad_query, row_sums, column_sums, bias_sums;

  GradientRows(const AttentionParams& attention, const AttentionPointers& tensors, void* memory)
      : params(attention), pointers(tensors), rows(attention, tensors, memory) {
    grad_logits = rows.take(taps, kSimdWidth);
    signed_grads = rows.take(taps, kSimdWidth);
    // a pair of channels may be one more than there are
    grad_query = rows.take(k.channels + 1, kSimdWidth);
    row_sums = rows.take(window.kernel_h * half, kSimdWidth);
    column_sums = rows.take(window.kernel_w * half, kSimdWidth);
    bias_sums = rows.take(taps, kSimdWidth);
  }

  // A band of rows of one head.
  void run_band(int64_t head, int64_t band) {
    clear(row_sums);
    clear(column_sums);
    clear(bias_sums);
    A* sums = static_cast<A*>(pointers.table_sums);
    if (sums) sums += (head * params.bands + band) * table_elements(k);
    if (pointers.bias) {
      place_sums = sums + (window.kernel_h + window.kernel_w) * half;
      for (int64_t i = 0; i < bias_elements(window); ++i) place_sums[i] = 0;
    }
    const int64_t begin = band * params.band_rows;
    const int64_t end = int_min(begin + params.band_rows, k.out_height);
    row_place = place_of_row(begin);
    for (int64_t y = begin; y < end; ++y) run_row({0, head, y});
    if (!sums) return;
    sums = add_lanes(row_sums, sums);
    add_lanes(column_sums, sums);
    if (pointers.bias) store_centre_bias();
  }

 private:
  // the gradients of the bias of this band, (places, taps) where windows are shifted, else (taps);
  // and the place of the current row
  A* place_sums = nullptr;
  int64_t row_place = 0;

  static void clear(Matrix<A> matrix) {
    for (int64_t i = 0; i < matrix.rows * matrix.pitch; ++i) matrix.data[i] = 0;
  }

  // Stores the sum of each row. Returns the end of the target.
  static A* add_lanes(const Matrix<A>& matrix, A* target) {
    for (int64_t i = 0; i < matrix.rows; ++i) {
      A sum = 0;
      for (int64_t n = 0; n < kSimdWidth; ++n) sum += matrix.data[i * matrix.pitch + n];
      *target++ = sum;
    }
    return target;
  }

  static Simd<A> at(const Matrix<A>& matrix, int64_t row) {
    return load_simd<A>(matrix.data + row * kSimdWidth);
  }

  static void add(const Matrix<A>& matrix, int64_t row, Simd<A> value) {
    store_simd<A>(matrix.data + row * kSimdWidth, at(matrix, row) + value);
  }

  int64_t place_of_row(int64_t y) const { return window.shifted ? y - first_row(k, y) : 0; }

  // Stores the gradient of the bias of outputs in the centre of their windows along the row.
  void store_centre_bias() {
    const int64_t place = row_place * window.kernel_w + window.padding_w;
    add_lanes(bias_sums, place_sums + (window.shifted ? place * taps : 0));
    clear(bias_sums);
  }

  // Rows of one place follow one another.
  void begin_place(int64_t y) {
    if (!pointers.bias || place_of_row(y) == row_place) return;
    store_centre_bias();
    row_place = place_of_row(y);
  }

  void run_row(RowIndex index) {
    begin_place(index.row);
    Keys keys = rows.keys_of(index);
    Values values = rows.template values_of<Values>(index);
    rows.begin_row(index, keys);
    values.pack_window(index.row);
    Matrix<A> grads = rows.grads;
    grads.rows = values.channels;
    rows.template pack_row<kValues>(pointers.grad, params.grad, index, v.channels, grads);
    for (int64_t x = 0; x < k.out_width; x += kSimdWidth) {
      compute_weights(keys, x);
      compute_logit_gradients(values, grads, x);
      store_planes(pointers.weight, index.group, 1, 0, x, rows.logits);
      clear(grad_query);
      if constexpr (kRelation == kProduct) {
        store_planes(pointers.grad_logits, index.group, 1, 0, x, grad_logits);
        add_keys(keys, x);
      } else {
        add_signs(keys, index.group, x);
      }
      add_tables(index.group, x);
      store_grad_query(index, x);
    }
  }

  // Replaces logits by the weights of the taps.
  void compute_weights(const Keys& keys, int64_t x) {
    const Simd<A> base = softmax_base<A>(rows.compute_logits(keys, x));
    const int64_t begin = rows.window_rows.begin * window.kernel_w;
    const int64_t end = rows.window_rows.end * window.kernel_w;
    Simd<A> sum = {};
    for (int64_t tap = begin; tap < end; ++tap) {
      const Simd<A> weight = softmax_weight<T>(at(rows.logits, tap) - base);
      store_simd<A>(rows.logits.data + tap * kSimdWidth, weight);
      sum += weight;
    }
    const Simd<A> factor = sum == 0 ? Simd<A>{} : 1 / sum;
    for (int64_t tap = begin; tap < end; ++tap)
      store_simd<A>(rows.logits.data + tap * kSimdWidth, at(rows.logits, tap) * factor);
  }

  // The gradient of the softmax: weight * (grad - sum of weight * grad).
  void compute_logit_gradients(const Values& values, Matrix<const A> grads, int64_t x) {
    Simd<A> mean = {};
    values.with_lanes(x, [&](const auto& lanes) {
      rows.for_inner_taps([&](auto count, int64_t tap, int64_t u, int64_t t) {
        Simd<A> sums[count] = {};
        add_relations<kProduct, T, A, count>(values, lanes, grads.from(0, x), rows.map_row(u), t,
                                             sums);
        for (int n = 0; n < count; ++n) {
          store_simd<A>(grad_logits.data + (tap + n) * kSimdWidth, sums[n]);
          mean += at(rows.logits, tap + n) * sums[n];
        }
      });
    });
    const bool is_border = has_border(k, x);
    rows.for_inner_taps([&](auto count, int64_t tap, int64_t, int64_t) {
      for (int n = 0; n < count; ++n) {
        const Simd<A> grad = at(rows.logits, tap + n) * (at(grad_logits, tap + n) - mean);
        store_simd<A>(grad_logits.data + (tap + n) * kSimdWidth, grad);
        if (pointers.bias && !is_border) add(bias_sums, tap + n, grad);
      }
    });
    if (pointers.bias && is_border) add_border_bias(x);
  }

  // Adds the gradients of 16 outputs from x on to those of the bias: by lanes for outputs in the
  // centre of their windows, at once for the few others.
  void add_border_bias(int64_t x) {
    Simd<A> centred = {};
    for (int64_t output = x; output < int_min(x + kSimdWidth, k.width); ++output) {
      const int64_t lane = output - x, place = output - first_column(k, output);
      if (place == window.padding_w) {
        centred[lane] = 1;
        continue;
      }
      A* target = place_sums + (row_place * window.kernel_w + place) * taps;
      for (int64_t tap = 0; tap < taps; ++tap)
        target[tap] += grad_logits.data[tap * kSimdWidth + lane];
    }
    for (int64_t tap = 0; tap < taps; ++tap)
      add(bias_sums, tap, centred > 0 ? at(grad_logits, tap) : Simd<A>{});
  }

  // Stores 16 outputs of all taps that meet the map, in a tensor (heads, planes, taps, outputs).
  // The scatters read no others.
  void store_planes(void* tensor, int64_t head, int64_t planes, int64_t plane, int64_t x,
                    const Matrix<A>& tile) const {
    const int64_t outputs = k.out_height * k.out_width;
    T* target = static_cast<T*>(tensor) + (head * planes + plane) * taps * outputs +
                rows.y * k.out_width + x;
    const int64_t end = rows.window_rows.end * window.kernel_w;
    for (int64_t tap = rows.window_rows.begin * window.kernel_w; tap < end; ++tap)
      store_columns<T, A>(target + tap * outputs, at(tile, tap), k.out_width - x);
  }

  // The gradient of the query by products: the sum of the keys, weighted by gradients of logits.
  void add_keys(const Keys& keys, int64_t x) {
    constexpr int64_t kRows = Rows::kPacking == kChannelPairs ? 4 : 8;
    keys.with_lanes(x, [&](const auto& lanes) {
      int64_t row = 0;
      for (; row + kRows <= keys.channels; row += kRows) add_key_rows<kRows>(keys, lanes, row);
      for (; row < keys.channels; ++row) add_key_rows<1>(keys, lanes, row);
    });
  }

  // The same for N rows of packed keys.
  template <int N, typename Lanes>
  void add_key_rows(const Keys& keys, const Lanes& lanes, int64_t row) {
    constexpr int kNumbers = Rows::kPacking == kChannelPairs ? 2 : 1;
    Simd<A> sums[N * kNumbers] = {};
    for (int64_t u = rows.window_rows.begin; u < rows.window_rows.end; ++u) {
      const A* source = keys.row(rows.map_row(u), row);
      for (int64_t t = 0; t < window.kernel_w; ++t) {
        const Simd<A> grad = at(grad_logits, u * window.kernel_w + t);
        const A* column = source + keys.tap_offset(t);
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) {
          const Simd<A> key = lanes.load(column + n * keys.pitch);
          if constexpr (kNumbers == 2) {
            sums[2 * n] += grad * first_number<A>(key);
            sums[2 * n + 1] += grad * second_number<A>(key);
          } else {
            sums[n] += grad * key;
          }
        }
      }
    }
    for (int n = 0; n < N * kNumbers; ++n)
      store_simd<A>(grad_query.data + (row * kNumbers + n) * kSimdWidth, sums[n]);
  }

  // The gradients by absolute differences. That of -|q - k| is -sign(q - k) for q, and sign(q - k)
  // for k: each channel has its own.
  void add_signs(const Keys& keys, int64_t head, int64_t x) {
    for (int64_t d = 0; d < k.channels; ++d) {
      const Simd<A> query = load_simd<A>(rows.queries.data + d * rows.pitch + x);
      Simd<A> sum = {};
      rows.for_inner_taps([&](auto count, int64_t tap, int64_t u, int64_t t) {
        for (int n = 0; n < count; ++n) {
          const Simd<A> key =
              load_simd<A>(keys.row(rows.map_row(u), d) + keys.tap_offset(t + n) + x);
          const Simd<A> grad = at(grad_logits, tap + n);
          const Simd<A> positive = query > key ? grad : Simd<A>{};
          const Simd<A> signed_grad = query < key ? -grad : positive;
          store_simd<A>(signed_grads.data + (tap + n) * kSimdWidth, signed_grad);
          sum -= signed_grad;
        }
      });
      store_planes(pointers.grad_logits, head, k.channels, d, x, signed_grads);
      store_simd<A>(grad_query.data + d * kSimdWidth, sum);
    }
  }

  // Relative position: adds to the gradient of the query, and to the sums for the tables.
  void add_tables(int64_t head, int64_t x) {
    if (!pointers.rows) return;
    const A* row_table = static_cast<const A*>(pointers.rows) + head * window.kernel_h * half;
    const A* column_table = static_cast<const A*>(pointers.columns) + head * window.kernel_w * half;
    const int64_t begin = rows.window_rows.begin, end = rows.window_rows.end;
    for (int64_t u = begin; u < end; ++u) {
      Simd<A> grad = {};
      for (int64_t t = 0; t < window.kernel_w; ++t)
        grad += at(grad_logits, u * window.kernel_w + t);
      add_table(row_table + u * half, grad, x, 0, row_sums, u * half);
    }
    for (int64_t t = 0; t < window.kernel_w; ++t) {
      Simd<A> grad = {};
      for (int64_t u = begin; u < end; ++u) grad += at(grad_logits, u * window.kernel_w + t);
      add_table(column_table + t * half, grad, x, half, column_sums, t * half);
    }
  }

  // One row of a table, which is multiplied with half of the channels of the query.
  void add_table(const A* table, Simd<A> grad, int64_t x, int64_t channel, const Matrix<A>& sums,
                 int64_t row) {
    for (int64_t d = 0; d < half; ++d) {
      add(grad_query, channel + d, grad * table[d]);
      add(sums, row + d, grad * query_channel(channel + d, x));
    }
  }

  Simd<A> query_channel(int64_t d, int64_t x) const {
    const A* column = rows.queries.data + x;
    if constexpr (Rows::kPacking == kChannelPairs) {
      const Simd<A> pairs = load_simd<A>(column + d / 2 * rows.pitch);
      return d % 2 ? second_number<A>(pairs) : first_number<A>(pairs);
    } else {
      return load_simd<A>(column + d * rows.pitch);
    }
  }

  void store_grad_query(RowIndex index, int64_t x) const {
    const Strides& strides = params.grad_query;
    T* target = static_cast<T*>(pointers.grad_query) + index.group * strides.g +
                index.row * strides.h + x * strides.w;
    const int64_t outputs = int_min(k.out_width - x, kSimdWidth);
    unpack_matrix<T, A>(target, strides.c, strides.w,
                        {grad_query.data, kSimdWidth, k.channels, outputs});
  }
};

// Bands [begin, end) of all heads of one image. `memory` has params.workspace_bytes.
template <typename T, typename A>
void run_attention_gradients(const AttentionParams& params, const AttentionPointers& pointers,
                             void* memory, int64_t begin, int64_t end) {
  const auto run = [&](auto rows) {
    for (int64_t item = begin; item < end; ++item)
      rows.run_band(item / params.bands, item % params.bands);
  };
  if (params.relation == kProduct)
    run(GradientRows<kProduct, T, A>(params, pointers, memory));
  else
    run(GradientRows<kAbsoluteDifference, T, A>(params, pointers, memory));
}

}  // namespace mmrednet::MMREDNET_ISA
