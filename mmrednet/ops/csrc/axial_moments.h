// Mean and variance of each term of the logits of attention along lines, and their backward pass.

#pragma once

#include <cstdint>

#include "axial_backward.h"
#include "axial_forward.h"
#include "axial_params.h"
#include "axial_products.h"
#include "integers.h"
#include "isa.h"
#include "simd.h"

namespace mmrednet::MMREDNET_ISA {

// Number, mean and sum of squared deviations of elements seen so far.
template <typename A>
struct RunningMoments {
  double count;
  Vector<double, kSimdWidth> mean, deviations;

  // Adds `size` elements of each lane (Chan et al., 1979).
  void add(double size, Simd<A> new_mean, Simd<A> new_deviations) {
    const auto other = __builtin_convertvector(new_mean, Vector<double, kSimdWidth>);
    const auto more = __builtin_convertvector(new_deviations, Vector<double, kSimdWidth>);
    const auto step = other - mean;
    const double total = count + size;
    mean += step * (size / total);
    deviations += more + step * step * (count * size / total);
    count = total;
  }

  // Stores mean and deviations of the first lanes together.
  void store(int64_t lanes, double* target) const {
    double first = 0, second = 0;
    for (int64_t n = 0; n < lanes; ++n) first += mean[n] / lanes;
    for (int64_t n = 0; n < lanes; ++n) {
      const double step = mean[n] - first;
      second += deviations[n] + step * step * count;
    }
    target[0] = first;
    target[1] = second;
  }
};

template <typename T, typename A>
struct AxialMoments : AxialGradients<T, A> {
  using Base = AxialGradients<T, A>;
  using Base::keys, Base::length, Base::p, Base::pairs, Base::pointers;

  AxialMoments(const AxialParams& params, const AxialPointers& tensors, void* memory)
      : Base(params, tensors, memory) {}

  // The moments of all pairs of a work item.
  void measure(int64_t item) {
    this->pack(item);
    this->set_scales(nullptr, item % p.heads, 1);
    RunningMoments<A> moments[kAxialTerms] = {};
    for (int64_t i = 0; i < length; i += this->rows_at_once) {
      const PairRows r = this->pair_rows(i);
      set_terms(r);
      for (int64_t row = 0; row < r.rows && i + row < p.length; ++row)
        for (int64_t t = 0; t < kAxialTerms; ++t) add_row(r, row, pairs[t], moments[t]);
    }
    double* target = pointers.moments + item * kAxialTerms * 2;
    for (int64_t t = 0; t < kAxialTerms; ++t) moments[t].store(this->tile.count, target + t * 2);
  }

  // The gradients of a work item.
  void run(int64_t item, int64_t chunk) {
    this->pack(item);
    this->set_scales(nullptr, item % p.heads, 1);
    this->clear();
    for (int64_t i = 0; i < length; i += this->rows_at_once) {
      const PairRows r = this->pair_rows(i);
      this->scale_queries(i, r.rows);
      set_terms(r);
      for (int64_t t = 0; t < kAxialTerms; ++t) set_gradients(r, item % p.heads, t);
      this->add_logits(r, pairs[0], pairs[1], pairs[2]);
    }
    this->flush(item, chunk);
  }

 private:
  void set_terms(const PairRows& r) {
    constexpr int B = Base::B;
    for (int64_t x = 0; x < r.count; x += B)
      for (int64_t row = 0; row < r.rows; row += B) {
        const Vectors<A> query = this->queries(r.i + row), key = this->key_lines(r.m + x);
        const int64_t w = r.i + row - r.m - x;
        const Distances<A> by_query = this->query_table(w), by_key = this->key_table(w);
        pair_block<A, kContent>(query, query, key, by_query, by_key, keys, pairs[0].from(row, x));
        pair_block<A, kFirst>(query, query, key, by_query, by_key, keys, pairs[1].from(row, x));
        pair_block<A, kSecond>(query, query, key, by_query, by_key, keys, pairs[2].from(row, x));
      }
  }

  // The mean of a row first, then deviations from it.
  void add_row(const PairRows& r, int64_t row, Vectors<A> terms, RunningMoments<A>& moments) {
    const int64_t i = r.i + row;
    const int64_t begin = int_max(0, i - p.reach) - r.m;
    const int64_t end = int_min(p.length, i + p.reach + 1) - r.m;
    const A size = static_cast<A>(end - begin);
    Simd<A> sum = {}, deviations = {};
    for (int64_t m = begin; m < end; ++m) sum += terms.load(row, m);
    const Simd<A> mean = sum / size;
    for (int64_t m = begin; m < end; ++m) {
      const Simd<A> step = terms.load(row, m) - mean;
      deviations += step * step;
    }
    moments.add(static_cast<double>(size), mean, deviations);
  }

  // Replaces a term by its gradient, which is linear in it.
  void set_gradients(const PairRows& r, int64_t head, int64_t term) {
    const A offset = static_cast<const A*>(pointers.offset)[term * p.heads + head];
    const A slope = static_cast<const A*>(pointers.slope)[term * p.heads + head];
    const Vectors<A> terms = pairs[term];
    for (int64_t row = 0; row < r.rows; ++row)
      for (int64_t m = 0; m < r.count; ++m)
        terms.store(row, m, terms.load(row, m) * slope + offset);
    this->fill_outside(r.i, r.rows, r.m, r.count, 0, terms);
    for (int64_t row = int_max(0, p.length - r.i); row < r.rows; ++row)
      for (int64_t m = 0; m < r.count; ++m) terms.store(row, m, Simd<A>{});
  }
};

// Work items [begin, end).
template <typename T, typename A>
void run_axial_moments(const AxialParams& params, const AxialPointers& pointers, void* memory,
                       int64_t begin, int64_t end) {
  AxialMoments<T, A> pass(params, pointers, memory);
  for (int64_t item = begin; item < end; ++item) pass.measure(item);
}

// Chunks [begin, end) of work items.
template <typename T, typename A>
void run_axial_moments_backward(const AxialParams& params, const AxialPointers& pointers,
                                void* memory, int64_t begin, int64_t end) {
  AxialMoments<T, A> pass(params, pointers, memory);
  run_chunks(pass, params, begin, end);
}

}  // namespace mmrednet::MMREDNET_ISA
