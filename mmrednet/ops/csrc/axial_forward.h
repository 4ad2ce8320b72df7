// Attention along lines: one head of 16 lines at a time, with an online softmax over chunks of
// keys.

#pragma once

#include <cstdint>
#include <cstring>

#include "axial_lines.h"
#include "axial_params.h"
#include "axial_products.h"
#include "integers.h"
#include "isa.h"
#include "simd.h"
#include "simd_exp2.h"

namespace mmrednet::MMREDNET_ISA {

// One head of 16 lines in the workspace of a thread: what all passes share.
template <typename T, typename A>
struct AxialLines {
  static constexpr int B = kPairBlock<A>;
  const AxialParams& p;
  const AxialPointers& pointers;
  const int64_t length = padded_length(p), channels = line_channels(p);
  const int64_t keys = p.key_channels, values = p.value_channels;
  // rows that are computed together
  const int64_t rows_at_once = p.reach < kAxialBlock * kAxialRows ? kAxialBlock : kAxialRows;
  // channels: query, key, value
  Vectors<A> lines;
  // some rows of queries, times the scale of their term with keys
  Vectors<A> scaled_queries;
  // the table, times scales, and its row of distance zero
  A* table;
  Distances<A> distances;
  // the next free element of the workspace
  A* free;
  // scales of the terms
  A scale[kAxialTerms];
  LineTile tile;

  AxialLines(const AxialParams& params, const AxialPointers& tensors, void* memory)
      : p(params), pointers(tensors), free(static_cast<A*>(memory)) {
    lines = take(length, channels);
    scaled_queries = take(kAxialRows, keys);
    table = free;
    free += round_up(table_rows(p) * channels);
    distances = {table + (length - 1) * channels, channels};
  }

  Vectors<A> take(int64_t size, int64_t pitch) {
    const Vectors<A> vectors = {free, pitch, 1};
    free += size * pitch * kSimdWidth;
    return vectors;
  }

  Vectors<A> queries(int64_t i) const { return lines.from(i, 0); }
  Vectors<A> key_lines(int64_t m) const { return lines.from(m, keys); }
  Vectors<A> value_lines(int64_t m) const { return lines.from(m, 2 * keys); }
  // tables of a pair of positions at a distance
  Distances<A> query_table(int64_t w) const { return distances.from(w, 0); }
  Distances<A> key_table(int64_t w) const { return distances.from(w, keys); }
  Distances<A> value_table(int64_t w) const { return distances.from(w, 2 * keys); }

  // Packs the lines of a work item.
  void pack(int64_t item) {
    tile = line_tile(p, p.lines, item);
    pack_lines<T, A>(lines.data, static_cast<const T*>(pointers.lines), tile,
                     line_copy(p.lines, channels, p.length));
    const int64_t size = p.length * channels * kSimdWidth;
    for (int64_t n = size; n < length * channels * kSimdWidth; ++n) lines.data[n] = 0;
  }

  // Sets the scales of the terms, times a factor or, without scales, to one; and the table times
  // scales.
  void set_scales(const void* scales, int64_t head, A factor) {
    const A* by_term = static_cast<const A*>(scales);
    for (int64_t t = 0; t < kAxialTerms; ++t)
      scale[t] = by_term ? by_term[t * p.heads + head] * factor : 1;
    const A* position_scale = static_cast<const A*>(pointers.position_scale);
    if (position_scale) position_scale += head * values;
    const A* source = static_cast<const A*>(pointers.table);
    for (int64_t w = 0; w < table_rows(p); ++w) {
      const A* from = source + w * channels;
      A* to = table + w * channels;
      for (int64_t c = 0; c < keys; ++c) to[c] = from[c] * scale[1];
      for (int64_t c = keys; c < 2 * keys; ++c) to[c] = from[c] * scale[2];
      from += 2 * keys;
      to += 2 * keys;
      if (position_scale)
        for (int64_t c = 0; c < values; ++c) to[c] = from[c] * position_scale[c];
      else
        std::memcpy(to, from, values * sizeof(A));
    }
  }

  void scale_queries(int64_t i, int64_t rows) {
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t c = 0; c < keys; ++c)
        scaled_queries.store(row, c, lines.load(i + row, c) * scale[0]);
  }

  // Keys within reach of some rows: the first of a whole block, and their number in whole blocks.
  int64_t first_key(int64_t i) const { return int_max(0, i - p.reach) / kAxialBlock * kAxialBlock; }
  int64_t key_count(int64_t i, int64_t rows) const {
    const int64_t end = int_min(p.length, i + rows + p.reach);
    return ceil_div(end - first_key(i), kAxialBlock) * kAxialBlock;
  }

  // Whether all pairs of some rows and keys have a weight.
  bool are_inside(int64_t i, int64_t rows, int64_t m, int64_t count) const {
    return m + count <= p.length && i + rows - 1 - m <= p.reach && m + count - 1 - i <= p.reach;
  }
  bool is_inside(int64_t i, int64_t m) const {
    return m < p.length && i - m <= p.reach && m - i <= p.reach;
  }

  // The logits of some rows and keys, minus infinity where a pair has no weight.
  void logits(int64_t i, int64_t rows, int64_t m, int64_t count, Vectors<A> result) {
    for (int64_t x = 0; x < count; x += B)
      for (int64_t row = 0; row < rows; row += B)
        pair_block<A, kContent | kFirst | kSecond>(
            scaled_queries.from(row, 0), queries(i + row), key_lines(m + x),
            query_table(i + row - m - x), key_table(i + row - m - x), keys, result.from(row, x));
    fill_outside(i, rows, m, count, -static_cast<A>(__builtin_inf()), result);
  }

  void fill_outside(int64_t i, int64_t rows, int64_t m, int64_t count, A value, Vectors<A> pairs) {
    if (are_inside(i, rows, m, count)) return;
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t x = 0; x < count; ++x)
        if (!is_inside(i + row, m + x)) pairs.store(row, x, Simd<A>{} + value);
  }
};

// The softmax of some rows while it runs over chunks of keys, of logits times log2(e): the largest
// logit so far, and the sum of weights relative to it. `factor` is what a chunk multiplies earlier
// sums with.
template <typename A>
struct OnlineSoftmax {
  A largest[kAxialRows * kSimdWidth], sum[kAxialRows * kSimdWidth];
  A factor[kAxialRows * kSimdWidth];

  void clear() {
    for (int64_t n = 0; n < kAxialRows * kSimdWidth; ++n) {
      largest[n] = -static_cast<A>(__builtin_inf());
      sum[n] = 0;
    }
  }

  // Replaces the logits of a chunk by weights.
  void add(Vectors<A> logits, int64_t rows, int64_t count) {
    const Simd<A> lowest = Simd<A>{} - static_cast<A>(__builtin_inf());
    for (int64_t row = 0; row < rows; ++row) {
      A* row_largest = largest + row * kSimdWidth;
      const Simd<A> before = load_simd<A>(row_largest);
      Simd<A> maximum = before;
      for (int64_t m = 0; m < count; ++m) {
        const Simd<A> logit = logits.load(row, m);
        maximum = logit > maximum ? logit : maximum;
      }
      // Infinity minus infinity would give NaN where no pair so far has a weight.
      const Simd<A> base = maximum == lowest ? Simd<A>{} : maximum;
      const Simd<A> rescale = exp2_nonpositive(before - base);
      Simd<A> total = load_simd<A>(sum + row * kSimdWidth) * rescale;
      for (int64_t m = 0; m < count; ++m) {
        const Simd<A> weight = exp2_nonpositive(logits.load(row, m) - base);
        logits.store(row, m, weight);
        total += weight;
      }
      store_simd<A>(row_largest, maximum);
      store_simd<A>(sum + row * kSimdWidth, total);
      store_simd<A>(factor + row * kSimdWidth, rescale);
    }
  }
};

template <typename T, typename A>
struct AxialForward : AxialLines<T, A> {
  using Base = AxialLines<T, A>;
  using Base::length, Base::p, Base::pointers, Base::values;
  // channels: (value channel, part)
  Vectors<A> results, weights;
  OnlineSoftmax<A> softmax;

  AxialForward(const AxialParams& params, const AxialPointers& tensors, void* memory)
      : Base(params, tensors, memory) {
    results = this->take(length, values * p.parts);
    weights = this->take(kAxialRows, kAxialChunk);
  }

  void run(int64_t item) {
    this->pack(item);
    // the softmax is that of powers of two
    this->set_scales(pointers.scale, item % p.heads, static_cast<A>(kLog2E));
    const int64_t step = this->rows_at_once;
    for (int64_t i = 0; i < length; i += step) attend(i, int_min(step, length - i));
    const LineTile tile = line_tile(p, p.result, item);
    unpack_lines<T, A>(static_cast<T*>(pointers.result), results.data, tile,
                       line_copy(p.result, values * p.parts, p.length));
  }

 private:
  // The results of some rows.
  void attend(int64_t i, int64_t rows) {
    const Vectors<A> sums = results.from(i, 0);
    for (int64_t n = 0; n < rows * results.pitch * kSimdWidth; ++n) sums.data[n] = 0;
    softmax.clear();
    this->scale_queries(i, rows);
    const int64_t first = this->first_key(i), end = first + this->key_count(i, rows);
    for (int64_t m = first; m < end; m += kAxialChunk) {
      const int64_t count = int_min(kAxialChunk, end - m);
      this->logits(i, rows, m, count, weights);
      softmax.add(weights, rows, count);
      add_values(i, rows, m, count, sums);
    }
    for (int64_t row = 0; row < rows; ++row) {
      const Simd<A> factor = 1 / load_simd<A>(softmax.sum + row * kSimdWidth);
      for (int64_t c = 0; c < results.pitch; ++c) sums.store(row, c, sums.load(row, c) * factor);
    }
  }

  void add_values(int64_t i, int64_t rows, int64_t m, int64_t count, Vectors<A> sums) {
    const Vectors<A> content = {sums.data, sums.pitch, p.parts};
    const Vectors<A> value = this->value_lines(m);
    const Distances<A> table = this->value_table(i - m);
    const A* factor = softmax.factor;
    if (p.adds_positions) {
      sum_over_keys<A, kContent | kFirst>(weights, value, table, rows, count, values, factor,
                                          content);
      return;
    }
    sum_over_keys<A, kContent>(weights, value, table, rows, count, values, factor, content);
    if (p.parts == 1) return;
    const Vectors<A> position = {sums.data + kSimdWidth, sums.pitch, p.parts};
    sum_over_keys<A, kFirst>(weights, value, table, rows, count, values, factor, position);
  }
};

// Work items [begin, end), each one head of 16 lines.
template <typename T, typename A>
void run_axial(const AxialParams& params, const AxialPointers& pointers, void* memory,
               int64_t begin, int64_t end) {
  AxialForward<T, A> forward(params, pointers, memory);
  for (int64_t item = begin; item < end; ++item) forward.run(item);
}

}  // namespace mmrednet::MMREDNET_ISA
