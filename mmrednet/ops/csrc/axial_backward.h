// The backward passes of attention along lines and of the moments of its logits. Both compute
// logits again, for some rows at a time.

#pragma once

#include <cstdint>
#include <cstring>

#include "axial_forward.h"
#include "axial_lines.h"
#include "axial_params.h"
#include "axial_products.h"
#include "integers.h"
#include "isa.h"
#include "simd.h"
#include "simd_exp.h"

namespace mmrednet::MMREDNET_ISA {

// Some rows of pairs: the first row and its number, the first key and its number.
struct PairRows {
  int64_t i, rows, m, count;
};

template <typename A>
inline A sum_of_lanes(Simd<A> vector) {
  A sum = 0;
  for (int n = 0; n < kSimdWidth; ++n) sum += vector[n];
  return sum;
}

// What the backward passes share: from gradients of the terms of logits to those of lines, table
// and scales.
template <typename T, typename A>
struct AxialGradients : AxialLines<T, A> {
  using Base = AxialLines<T, A>;
  using Base::channels, Base::keys, Base::length, Base::p, Base::pointers, Base::scale;
  // gradients of lines, and of the table by line
  Vectors<A> grad_lines, grad_table;
  // some rows of pairs, for each term
  Vectors<A> pairs[kAxialTerms];
  // gradients of the queries of some rows, without their scale
  Vectors<A> grad_queries;
  // gradient of the scale of the first term
  Simd<A> grad_scale;

  AxialGradients(const AxialParams& params, const AxialPointers& tensors, void* memory)
      : Base(params, tensors, memory) {
    grad_lines = this->take(length, channels);
    grad_table = this->take(table_rows(p), channels);
    for (auto& rows : pairs) rows = this->take(kAxialRows, length);
    grad_queries = this->take(kAxialRows, keys);
  }

  void clear() {
    std::memset(grad_lines.data, 0, length * channels * kSimdWidth * sizeof(A));
    std::memset(grad_table.data, 0, table_rows(p) * channels * kSimdWidth * sizeof(A));
    grad_scale = Simd<A>{};
  }

  PairRows pair_rows(int64_t i) const {
    const int64_t rows = int_min(this->rows_at_once, length - i);
    return {i, rows, this->first_key(i), this->key_count(i, rows)};
  }

  // The part of the table's gradient of the first row and key.
  Vectors<A> table_gradient(const PairRows& r, int64_t channel) const {
    return grad_table.from(r.i - r.m + length - 1, channel);
  }

  // Adds sums over equal distances to the gradient of the table.
  template <bool by_query>
  void add_to_table(const PairRows& r, Vectors<const A> factors, Vectors<const A> vectors,
                    int64_t size, int64_t channel) {
    const Vectors<A> result = table_gradient(r, channel);
    if (r.rows == kAxialRows)
      sum_over_distances<A, by_query, kAxialRows>(factors, vectors, r.count, size, result);
    else
      sum_over_distances<A, by_query, kAxialBlock>(factors, vectors, r.count, size, result);
  }

  // Adds what the gradients of the terms of some rows give. They may be one tensor.
  void add_logits(const PairRows& r, Vectors<const A> content, Vectors<const A> by_query,
                  Vectors<const A> by_key) {
    const Vectors<A> query_gradient = grad_lines.from(r.i, 0);
    const Vectors<A> key_gradient = grad_lines.from(r.m, keys);
    // a term is linear in the query: its product with the gradient is that of the scale
    std::memset(grad_queries.data, 0, kAxialRows * keys * kSimdWidth * sizeof(A));
    sum_over_keys<A, kContent>(content, this->key_lines(r.m), this->query_table(0), r.rows, r.count,
                               keys, nullptr, grad_queries);
    for (int64_t row = 0; row < r.rows; ++row)
      for (int64_t c = 0; c < keys; ++c) {
        const Simd<A> part = grad_queries.load(row, c);
        grad_scale += part * this->lines.load(r.i + row, c);
        query_gradient.store(row, c, part * scale[0]);
      }
    sum_over_keys<A, kFirst>(by_query, this->key_lines(r.m), this->query_table(r.i - r.m), r.rows,
                             r.count, keys, nullptr, query_gradient);
    sum_over_queries<A, kContent>(content, this->scaled_queries, this->key_table(0), r.rows,
                                  r.count, keys, key_gradient);
    sum_over_queries<A, kSecond>(by_key, this->scaled_queries, this->key_table(r.i - r.m), r.rows,
                                 r.count, keys, key_gradient);
    add_to_table<true>(r, by_query, this->queries(r.i), keys, 0);
    add_to_table<false>(r, by_key, this->key_lines(r.m), keys, keys);
  }

  // Stores the gradients of lines, and adds those of table and scales to the sums of a chunk.
  void flush(int64_t item, int64_t chunk) {
    unpack_lines<T, A>(static_cast<T*>(pointers.grad_lines), grad_lines.data, this->tile,
                       line_copy(p.lines, channels, p.length));
    const int64_t head = item % p.heads, size = table_rows(p) * channels;
    const A* table = static_cast<const A*>(pointers.table);
    double* sums = pointers.table_sums + chunk * size;
    double by_term[kAxialTerms] = {static_cast<double>(sum_of_lanes<A>(grad_scale)), 0, 0};
    for (int64_t w = 0; w < table_rows(p); ++w)
      for (int64_t c = 0; c < channels; ++c) {
        const double sum = sum_of_lanes<A>(grad_table.load(w, c));
        // queries have the first channels, keys the next, values the last
        const int64_t term = c < keys ? 1 : c < 2 * keys ? 2 : 0;
        if (term) by_term[term] += sum * table[w * channels + c];
        sums[w * channels + c] += term ? sum * scale[term] : sum;
      }
    double* scale_sums = pointers.scale_sums + chunk * kAxialTerms * p.heads;
    for (int64_t t = 0; t < kAxialTerms; ++t) scale_sums[t * p.heads + head] += by_term[t];
  }
};

// The gradients of attention along lines.
template <typename T, typename A>
struct AxialBackward : AxialGradients<T, A> {
  using Base = AxialGradients<T, A>;
  using Base::length, Base::p, Base::pointers, Base::values, Base::pairs;
  // gradient of the result; channels: (value channel, part)
  Vectors<A> grads;

  AxialBackward(const AxialParams& params, const AxialPointers& tensors, void* memory)
      : Base(params, tensors, memory) {
    grads = this->take(length, values * p.parts);
  }

  void run(int64_t item, int64_t chunk) {
    this->pack(item);
    this->set_scales(pointers.scale, item % p.heads, 1);
    this->clear();
    const LineTile tile = line_tile(p, p.result, item);
    pack_lines<T, A>(grads.data, static_cast<const T*>(pointers.grad), tile,
                     line_copy(p.result, grads.pitch, p.length));
    const int64_t size = p.length * grads.pitch * kSimdWidth;
    for (int64_t n = size; n < length * grads.pitch * kSimdWidth; ++n) grads.data[n] = 0;
    for (int64_t i = 0; i < length; i += this->rows_at_once) add_rows(this->pair_rows(i));
    this->flush(item, chunk);
  }

 private:
  void add_rows(const PairRows& r) {
    const Vectors<A> weights = pairs[0], grad_logits = pairs[1];
    this->scale_queries(r.i, r.rows);
    this->logits(r.i, r.rows, r.m, r.count, weights);
    for (int64_t row = 0; row < r.rows; ++row) set_weights(r, row);
    set_weight_gradients(r);
    for (int64_t row = 0; row < r.rows; ++row) set_logit_gradients(r, row);

    const Vectors<A> content = {grads.at(r.i, 0), grads.pitch, p.parts};
    sum_over_queries<A, kContent>(weights, content, this->value_table(0), r.rows, r.count, values,
                                  this->grad_lines.from(r.m, 2 * this->keys));
    if (p.parts == 2) {
      const Vectors<A> position = {grads.at(r.i, 1), grads.pitch, p.parts};
      this->template add_to_table<true>(r, weights, position, values, 2 * this->keys);
    }
    this->add_logits(r, grad_logits, grad_logits, grad_logits);
  }

  // The softmax of a row. Rows behind the end have no weights.
  void set_weights(const PairRows& r, int64_t row) {
    const Vectors<A> weights = pairs[0].from(row, 0);
    const bool is_empty = r.i + row >= p.length;
    Simd<A> maximum = is_empty ? Simd<A>{} : weights.load(0, 0), sum = {};
    for (int64_t m = 1; m < r.count && !is_empty; ++m) {
      const Simd<A> logit = weights.load(0, m);
      maximum = logit > maximum ? logit : maximum;
    }
    for (int64_t m = 0; m < r.count; ++m) {
      const Simd<A> weight = is_empty ? Simd<A>{} : exp_nonpositive(weights.load(0, m) - maximum);
      weights.store(0, m, weight);
      sum += weight;
    }
    const Simd<A> factor = is_empty ? Simd<A>{} : 1 / sum;
    for (int64_t m = 0; m < r.count; ++m) weights.store(0, m, weights.load(0, m) * factor);
  }

  void set_weight_gradients(const PairRows& r) {
    constexpr int B = Base::B;
    for (int64_t x = 0; x < r.count; x += B)
      for (int64_t row = 0; row < r.rows; row += B) {
        const Vectors<A> content = {grads.at(r.i + row, 0), grads.pitch, p.parts};
        const Vectors<A> position = {grads.at(r.i + row, p.parts - 1), grads.pitch, p.parts};
        const Vectors<A> value = this->value_lines(r.m + x);
        const Distances<A> table = this->value_table(r.i + row - r.m - x);
        const Vectors<A> result = pairs[1].from(row, x);
        if (p.parts == 2)
          pair_block<A, kContent | kFirst>(content, position, value, table, table, values, result);
        else
          pair_block<A, kContent>(content, content, value, table, table, values, result);
      }
  }

  // weight * (grad - sum of weight * grad)
  void set_logit_gradients(const PairRows& r, int64_t row) {
    Simd<A> sum = {};
    for (int64_t m = 0; m < r.count; ++m) sum += pairs[0].load(row, m) * pairs[1].load(row, m);
    for (int64_t m = 0; m < r.count; ++m)
      pairs[1].store(row, m, pairs[0].load(row, m) * (pairs[1].load(row, m) - sum));
  }
};

// Chunks [begin, end) of work items.
template <typename Pass>
void run_chunks(Pass& pass, const AxialParams& p, int64_t begin, int64_t end) {
  const int64_t size = ceil_div(work_items(p), p.chunks);
  for (int64_t chunk = begin; chunk < end; ++chunk)
    for (int64_t item = chunk * size; item < int_min((chunk + 1) * size, work_items(p)); ++item)
      pass.run(item, chunk);
}

template <typename T, typename A>
void run_axial_backward(const AxialParams& params, const AxialPointers& pointers, void* memory,
                        int64_t begin, int64_t end) {
  AxialBackward<T, A> pass(params, pointers, memory);
  run_chunks(pass, params, begin, end);
}

}  // namespace mmrednet::MMREDNET_ISA
