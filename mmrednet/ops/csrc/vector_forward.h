// The result of vector attention: features, hidden features and weights of a tile stay in the
// workspace.

#pragma once

#include <cstdint>
#include <type_traits>

#include "integers.h"
#include "isa.h"
#include "matrix.h"
#include "simd.h"
#include "simd_exp.h"
#include "small_gemm.h"
#include "vector_features.h"
#include "vector_params.h"
#include "vector_strip.h"

namespace mmrednet::MMREDNET_ISA {

// Replaces the logits of one group, a vector for each tap, by their softmax over the taps.
template <typename A>
inline void softmax_taps(A* logits, int64_t taps) {
  Simd<A> maximum = load_simd<A>(logits), sum = {};
  for (int64_t k = 1; k < taps; ++k) {
    const Simd<A> logit = load_simd<A>(logits + k * kSimdWidth);
    maximum = logit > maximum ? logit : maximum;
  }
  for (int64_t k = 0; k < taps; ++k) {
    const Simd<A> weight = exp_nonpositive(load_simd<A>(logits + k * kSimdWidth) - maximum);
    store_simd<A>(logits + k * kSimdWidth, weight);
    sum += weight;
  }
  const Simd<A> factor = 1 / sum;
  for (int64_t k = 0; k < taps; ++k)
    store_simd<A>(logits + k * kSimdWidth, load_simd<A>(logits + k * kSimdWidth) * factor);
}

// Sums the neighbours of a vector of outputs for N channels that share their weights. A channel is
// `channel_step` behind the one before, in packed rows as in the result.
template <bool kOneRow, typename A, int N>
inline void aggregate_channels(const A* values, int64_t channel_step, const Offsets* taps_at,
                               int64_t taps, const Lanes<A>& lanes, const A* weights,
                               int64_t weight_pitch, A* result, int64_t result_step) {
  Simd<A> sums[N] = {};
  for (int64_t k = 0; k < taps; ++k) {
    const Simd<A> weight = load_simd<A>(weights + k * weight_pitch);
#pragma GCC unroll 8
    for (int d = 0; d < N; ++d)
      sums[d] += weight * load_tap<kOneRow, A>(values + d * channel_step, taps_at[k], lanes);
  }
  for (int d = 0; d < N; ++d) store_simd<A>(result + d * result_step, sums[d]);
}

// Sums the neighbours of a vector of outputs for all channels c of a group g, where c % G = g.
template <typename A>
void aggregate_group(const VectorParams& p, const A* values, const Offsets* taps_at,
                     const Lanes<A>& lanes, int64_t group, const A* weights, int64_t weight_pitch,
                     A* result) {
  const int64_t taps = num_taps(p.window), count = p.value_channels / p.groups;
  const int64_t channel_step = p.groups * p.pitch, result_step = p.groups * kSimdWidth;
  with_rows(lanes, [&](auto one_row) {
    for (int64_t d = 0; d < count;) {
      const A* channels = values + (d * p.groups + group) * p.pitch;
      A* sums = result + (d * p.groups + group) * kSimdWidth;
      const auto run = [&](auto size) {
        aggregate_channels<one_row, A, size>(channels, channel_step, taps_at, taps, lanes, weights,
                                             weight_pitch, sums, result_step);
        d += size;
      };
      // eight sums hide the latency of a multiply-add
      if (count - d >= 8)
        run(std::integral_constant<int, 8>());
      else if (count - d >= 4)
        run(std::integral_constant<int, 4>());
      else
        run(std::integral_constant<int, 1>());
    }
  });
}

template <typename T, typename A>
struct ForwardTile : FeatureTile<T, A> {
  using Base = FeatureTile<T, A>;
  using Base::Base;
  using Base::buffers;
  using Base::memory;
  using Base::p;
  using Base::pointers;
  using Base::strip;
  using Base::taps;
  using Base::value_taps;
  using Base::vector_count;
  using Base::vectors;

  A* output(int64_t vector) const {
    return memory + buffers.output + vector * p.value_channels * kSimdWidth;
  }

  // The weights of all groups and taps, pairwise: a row for each group.
  Matrix<A> pair_weights() const {
    const Matrix<A> logits = {memory + buffers.logits, taps * kSimdWidth, p.outputs,
                              taps * kSimdWidth};
    for (int64_t first = 0; first < taps; first += p.chunk) {
      const int64_t last = int_min(first + p.chunk, taps), columns = (last - first) * kSimdWidth;
      const Matrix<A> features = {memory + buffers.features, columns, p.features, columns};
      const Matrix<A> hidden = {memory + buffers.hidden, columns, p.hidden, columns};
      Base::pair_hidden(first, last, features, hidden);
      last_layer(hidden, logits, first);
    }
    for (int64_t g = 0; g < p.groups; ++g) softmax_taps<A>(logits.data + g * logits.pitch, taps);
    return logits;
  }

  // Applies the ReLU to pairwise hidden features and computes the logits of their taps.
  void last_layer(Matrix<A> hidden, Matrix<A> logits, int64_t first_tap) const {
    apply_relu<A>(hidden);
    Matrix<A> part = logits.from(0, first_tap * kSimdWidth);
    part.columns = hidden.columns;
    multiply<A>({Base::parameter(pointers.weight2), p.hidden, p.outputs, p.hidden}, hidden,
                Base::parameter(pointers.bias2), false, part);
  }

  // Patchwise weights of all taps of a group.
  Matrix<A> patch_weights(int64_t group, Matrix<const A> hidden) const {
    const Matrix<A> weights = {memory + buffers.logits, hidden.pitch, taps, hidden.columns};
    const A* weight = Base::parameter(pointers.weight2) + group * taps * p.hidden;
    multiply<A>({weight, p.hidden, taps, p.hidden}, hidden,
                Base::parameter(pointers.bias2) + group * taps, false, weights);
    return weights;
  }

  // Patchwise hidden features of the tile, after the ReLU.
  Matrix<A> patch_activations() const {
    const int64_t columns = Base::columns();
    const Matrix<A> hidden = {memory + buffers.hidden, columns, p.hidden, columns};
    Base::patch_hidden(hidden);
    apply_relu<A>(hidden);
    return hidden;
  }

  void run_tile(int64_t tile) {
    Base::begin_tile(tile);
    if (p.patchwise) {
      const Matrix<A> hidden = patch_activations();
      for (int64_t g = 0; g < p.groups; ++g) {
        const Matrix<A> weights = patch_weights(g, hidden);
        for (int64_t v = 0; v < vector_count; ++v)
          aggregate_group<A>(p, Base::value(), value_taps + v * taps, vectors[v].lanes, g,
                             weights.data + v * kSimdWidth, weights.pitch, output(v));
      }
    } else {
      const Matrix<A> weights = pair_weights();
      for (int64_t g = 0; g < p.groups; ++g)
        aggregate_group<A>(p, Base::value(), value_taps, vectors[0].lanes, g,
                           weights.data + g * weights.pitch, kSimdWidth, output(0));
    }
    for (int64_t v = 0; v < vector_count; ++v)
      unpack_outputs<T, A>(strip, vectors[v].lanes, static_cast<T*>(pointers.result), p.result,
                           {output(v), kSimdWidth, p.value_channels, kSimdWidth});
  }
};

}  // namespace mmrednet::MMREDNET_ISA
