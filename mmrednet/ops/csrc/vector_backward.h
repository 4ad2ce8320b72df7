// The gradients of vector attention and of the statistics of its features. Features and weights are
// computed again, tile by tile.

#pragma once

#include <cstdint>
#include <type_traits>

#include "integers.h"
#include "isa.h"
#include "matrix.h"
#include "simd.h"
#include "small_gemm.h"
#include "transpose.h"
#include "vector_features.h"
#include "vector_forward.h"
#include "vector_params.h"
#include "vector_statistics.h"
#include "vector_strip.h"

namespace mmrednet::MMREDNET_ISA {

template <typename A>
inline void add_simd(A* target, Simd<A> value) {
  store_simd<A>(target, load_simd<A>(target) + value);
}

// Adds the sums of the rows of a matrix to vectors of partial sums.
template <typename A>
inline void add_rows(Matrix<const A> x, A* sums) {
  for (int64_t i = 0; i < x.rows; ++i) {
    Simd<A> sum = load_simd<A>(sums + i * kSimdWidth);
    for (int64_t j = 0; j < x.columns; j += kSimdWidth)
      sum += load_simd<A>(x.data + i * x.pitch + j);
    store_simd<A>(sums + i * kSimdWidth, sum);
  }
}

// Sets the gradient to zero where a ReLU returned zero.
template <typename A>
inline void mask_gradient(Matrix<const A> activation, Matrix<A> grad) {
  for (int64_t i = 0; i < grad.rows; ++i)
    for (int64_t j = 0; j < grad.columns; j += kSimdWidth) {
      A* target = grad.data + i * grad.pitch + j;
      const Simd<A> x = load_simd<A>(activation.data + i * activation.pitch + j);
      store_simd<A>(target, x > 0 ? load_simd<A>(target) : Simd<A>{});
    }
}

// Adds the gradients of the values of N channels of a group, for all taps, and their part of the
// gradients of the weights. A channel is `channel_step` behind the one before.
template <bool kOneRow, typename A, int N>
inline void channel_gradients(const A* values, A* grad_values, int64_t channel_step,
                              const Offsets* taps_at, int64_t taps, const Lanes<A>& lanes,
                              const A* grad, int64_t grad_step, const A* weights, A* grad_weights,
                              int64_t pitch, bool add) {
  Simd<A> y[N];
  for (int d = 0; d < N; ++d) y[d] = load_simd<A>(grad + d * grad_step);
  for (int64_t k = 0; k < taps; ++k) {
    const Simd<A> weight = load_simd<A>(weights + k * pitch);
    Simd<A> grad_weight = add ? load_simd<A>(grad_weights + k * pitch) : Simd<A>{};
#pragma GCC unroll 8
    for (int d = 0; d < N; ++d) {
      grad_weight += y[d] * load_tap<kOneRow, A>(values + d * channel_step, taps_at[k], lanes);
      add_to_tap<kOneRow, A>(grad_values + d * channel_step, taps_at[k], lanes, weight * y[d]);
    }
    store_simd<A>(grad_weights + k * pitch, grad_weight);
  }
}

// The gradients of the values of a group and of its weights, for all taps of a vector of outputs.
template <typename A>
void group_gradients(const VectorParams& p, const A* values, A* grad_values, const Offsets* taps_at,
                     const Lanes<A>& lanes, int64_t group, const A* grad, const A* weights,
                     A* grad_weights, int64_t pitch) {
  const int64_t taps = num_taps(p.window), count = p.value_channels / p.groups;
  const int64_t channel_step = p.groups * p.pitch, grad_step = p.groups * kSimdWidth;
  with_rows(lanes, [&](auto one_row) {
    for (int64_t d = 0; d < count;) {
      const int64_t channel = d * p.groups + group;
      const auto run = [&](auto size) {
        channel_gradients<one_row, A, size>(values + channel * p.pitch,
                                            grad_values + channel * p.pitch, channel_step, taps_at,
                                            taps, lanes, grad + channel * kSimdWidth, grad_step,
                                            weights, grad_weights, pitch, d > 0);
        d += size;
      };
      if (count - d >= 8)
        run(std::integral_constant<int, 8>());
      else if (count - d >= 4)
        run(std::integral_constant<int, 4>());
      else
        run(std::integral_constant<int, 1>());
    }
  });
}

// The gradients of a query and a key from that of their relation.
template <VectorRelation kRelation, typename A>
inline Simd<A> query_gradient(Simd<A> grad, Simd<A> key) {
  return kRelation == kHadamard ? grad * key : grad;
}
template <VectorRelation kRelation, typename A>
inline Simd<A> key_gradient(Simd<A> grad, Simd<A> query) {
  if constexpr (kRelation == kHadamard) return grad * query;
  return kRelation == kSubtraction ? -grad : grad;
}

template <typename T, typename A>
struct BackwardTile : ForwardTile<T, A> {
  using Base = ForwardTile<T, A>;
  using Features = FeatureTile<T, A>;
  using Base::Base;
  using Base::buffers;
  using Base::key_taps;
  using Base::memory;
  using Base::p;
  using Base::pointers;
  using Base::strip;
  using Base::taps;
  using Base::value_taps;
  using Base::vector_count;
  using Base::vectors;
  // sums of the part, and gradients of the packed rows of the strip
  A *sums = nullptr, *grad_keys = nullptr, *grad_values = nullptr;

  int64_t hidden_pitch() const { return round_up(p.hidden); }

  void begin_part(int64_t part) {
    sums = static_cast<A*>(pointers.sums) + part * vector_sums(p).size;
  }

  void begin_strip(int64_t index) {
    Features::begin_strip(index);
    grad_keys =
        static_cast<A*>(pointers.key_strips) + kSimdWidth + index * strip_stride(p, p.channels);
    grad_values = static_cast<A*>(pointers.value_strips) + kSimdWidth +
                  index * strip_stride(p, p.value_channels);
  }

  A* grad(int64_t vector) const {
    return memory + buffers.grad + vector * p.value_channels * kSimdWidth;
  }
  A* grad_query(int64_t vector) const {
    return memory + buffers.output + vector * p.channels * kSimdWidth;
  }

  void begin_tile(int64_t tile) {
    Features::begin_tile(tile);
    for (int64_t i = 0; i < vector_count * p.channels * kSimdWidth; ++i) grad_query(0)[i] = 0;
    if (p.mode != kGradients) return;
    for (int64_t v = 0; v < vector_count; ++v)
      pack_outputs<T, A>(strip, vectors[v].lanes, static_cast<const T*>(pointers.grad), p.grad,
                         {grad(v), kSimdWidth, p.value_channels, kSimdWidth});
  }

  void end_tile() {
    for (int64_t v = 0; v < vector_count; ++v)
      unpack_outputs<T, A>(strip, vectors[v].lanes, static_cast<T*>(pointers.grad_query),
                           p.grad_query, {grad_query(v), kSimdWidth, p.channels, kSimdWidth});
  }

  // The transpose of a chunk of hidden features or of their gradients, with zeros behind.
  Matrix<A> transposed(Matrix<const A> x) const {
    const Matrix<A> target = {memory + buffers.hidden_t, hidden_pitch(), x.columns, hidden_pitch()};
    pack_matrix<A, A>({target.data, target.pitch, x.columns, x.rows}, x.data, 1, x.pitch);
    if (x.rows < target.pitch) zero_columns<A>(target, x.rows);
    return target;
  }

  // Adds the gradients of features of some taps of a vector to those of queries and keys, and to
  // the sums of the first norm. Feature first_feature + c is the relation of channel c. The
  // features are after the ReLU, or null if the gradients are those of the relation itself. Those
  // of tap t begin t vectors behind.
  template <typename Relation>
  void add_channels(int64_t vector, int64_t first_channel, int64_t last_channel,
                    int64_t first_feature, const Offsets* taps_at, int64_t tap_count,
                    Matrix<const A> grads, const A* features, int64_t feature_pitch,
                    Relation relation) {
    const OutputVector<A>& outputs = vectors[vector];
    const Lanes<A>& lanes = outputs.lanes;
    const VectorSums at = vector_sums(p);
    const A* scale = Features::parameter(pointers.scale1);
    with_rows(lanes, [&](auto one_row) {
      for (int64_t c = first_channel; c < last_channel; ++c) {
        const int64_t f = first_feature + c;
        const Simd<A> q = load_simd<A>(outputs.query.data + c * kSimdWidth);
        Simd<A> shift_sum = {}, scale_sum = {}, query_sum = {};
        for (int64_t t = 0; t < tap_count; ++t) {
          const Simd<A> k = load_tap<one_row, A>(Features::key() + c * p.pitch, taps_at[t], lanes);
          Simd<A> x_grad = load_simd<A>(grads.data + c * grads.pitch + t * kSimdWidth);
          if (features) {
            const Simd<A> feature = load_simd<A>(features + c * feature_pitch + t * kSimdWidth);
            x_grad = feature > 0 ? x_grad : Simd<A>{};
            shift_sum += x_grad;
            scale_sum += x_grad * relate<relation, A>(q, k);
            x_grad *= scale[f];
          }
          query_sum += query_gradient<relation, A>(x_grad, k);
          add_to_tap<one_row, A>(grad_keys + c * p.pitch, taps_at[t], lanes,
                                 key_gradient<relation, A>(x_grad, q));
        }
        if constexpr (relation != kConcatenation)
          add_simd<A>(grad_query(vector) + c * kSimdWidth, query_sum);
        if (!features) continue;
        add_simd<A>(sums + at.shift1 + f * kSimdWidth, shift_sum);
        add_simd<A>(sums + at.scale1 + f * kSimdWidth, scale_sum);
      }
    });
  }

  // The same for the features of the centre of a patch.
  void add_centre(int64_t vector, Matrix<const A> grads, const A* features, int64_t feature_pitch) {
    const VectorSums at = vector_sums(p);
    const A* scale = Features::parameter(pointers.scale1);
    for (int64_t c = 0; c < p.channels; ++c) {
      const Simd<A> q = load_simd<A>(vectors[vector].query.data + c * kSimdWidth);
      Simd<A> x_grad = load_simd<A>(grads.data + c * grads.pitch);
      if (features) {
        const Simd<A> feature = load_simd<A>(features + c * feature_pitch);
        x_grad = feature > 0 ? x_grad : Simd<A>{};
        add_simd<A>(sums + at.shift1 + c * kSimdWidth, x_grad);
        add_simd<A>(sums + at.scale1 + c * kSimdWidth, x_grad * q);
        x_grad *= scale[c];
      }
      add_simd<A>(grad_query(vector) + c * kSimdWidth, x_grad);
    }
  }

  // Adds the gradients of pairwise features of taps [begin, end).
  void add_pairs(int64_t begin, int64_t end, Matrix<const A> grads, const A* features,
                 int64_t feature_pitch) {
    const auto run = [&](int64_t first, int64_t last) {
      with_relation(p, first, [&](auto relation) {
        add_channels(0, first, last, 0, key_taps + begin, end - begin, grads, features,
                     feature_pitch, relation);
      });
    };
    if (p.content > 0) run(0, p.content);
    if (p.content < p.channels) run(p.content, p.channels);
  }

  // Adds the gradients of patchwise features [begin, end).
  void add_patch(int64_t begin, int64_t end, Matrix<const A> grads, const A* features,
                 int64_t feature_pitch) {
    const std::integral_constant<VectorRelation, kConcatenation> relation = {};
    for (int64_t first = begin; first < end; first += p.channels) {
      const int64_t row = first - begin;
      for (int64_t v = 0; v < vector_count; ++v) {
        const Matrix<const A> part = grads.from(row, v * kSimdWidth);
        const A* rows = features ? features + row * feature_pitch + v * kSimdWidth : nullptr;
        if (first == 0) {
          add_centre(v, part, rows, feature_pitch);
          continue;
        }
        const Offsets* tap_at = key_taps + v * taps + first / p.channels - 1;
        add_channels(v, 0, p.channels, first, tap_at, 1, part, rows, feature_pitch, relation);
      }
    }
  }

  // The first layer: adds features * grad_hidden^T to the gradient of its weight, and returns the
  // gradients of the features.
  Matrix<A> first_layer_gradients(Matrix<const A> features, int64_t first_feature,
                                  Matrix<const A> grad_hidden, Matrix<const A> grad_hidden_t) {
    const Matrix<A> weight_sums = {sums + vector_sums(p).weight1 + first_feature * hidden_pitch(),
                                   hidden_pitch(), features.rows, hidden_pitch()};
    multiply<A>(features, grad_hidden_t, nullptr, true, weight_sums);
    const Matrix<A> grads = {memory + buffers.grad_features, grad_hidden.columns, features.rows,
                             grad_hidden.columns};
    const A* weight_t = Features::parameter(pointers.weight1_t) + first_feature * p.hidden;
    multiply<A>({weight_t, p.hidden, features.rows, p.hidden}, grad_hidden, nullptr, false, grads);
    return grads;
  }

  // Replaces statistics by their gradients, factor * x + offset, with zeros behind the outputs.
  void statistic_gradients(Matrix<A> x, int64_t first_row) const {
    const A* factor = Features::parameter(pointers.factor) + first_row;
    const A* offset = Features::parameter(pointers.offset) + first_row;
    for (int64_t j = 0; j * kSimdWidth < x.columns; ++j) {
      const Simd<A> valid = valid_lanes<A>(vectors[p.patchwise ? j : 0].lanes);
      for (int64_t i = 0; i < x.rows; ++i) {
        A* target = x.data + i * x.pitch + j * kSimdWidth;
        store_simd<A>(target, valid * (load_simd<A>(target) * factor[i] + offset[i]));
      }
    }
  }

  // Pairwise: features and hidden features of all taps.
  Matrix<A> all_features() const {
    return {memory + buffers.features, taps * kSimdWidth, p.features, taps * kSimdWidth};
  }
  Matrix<A> all_hidden() const {
    return {memory + buffers.hidden, taps * kSimdWidth, p.hidden, taps * kSimdWidth};
  }
  static Matrix<A> columns_of(Matrix<A> x, int64_t first, int64_t last) {
    Matrix<A> part = x.from(0, first * kSimdWidth);
    part.columns = (last - first) * kSimdWidth;
    return part;
  }

  // The gradients of the logits of all groups and taps, pairwise. Adds those of the values.
  Matrix<A> pair_logit_gradients(Matrix<A> weights) {
    const Matrix<A> grads = {memory + buffers.grad_logits, weights.pitch, weights.rows,
                             weights.columns};
    const Lanes<A>& lanes = vectors[0].lanes;
    for (int64_t g = 0; g < p.groups; ++g) {
      A *weight_row = weights.data + g * weights.pitch, *grad_row = grads.data + g * grads.pitch;
      group_gradients<A>(p, Features::value(), grad_values, value_taps, lanes, g, grad(0),
                         weight_row, grad_row, kSimdWidth);
      Simd<A> mean = {};
      for (int64_t k = 0; k < taps * kSimdWidth; k += kSimdWidth)
        mean += load_simd<A>(weight_row + k) * load_simd<A>(grad_row + k);
      for (int64_t k = 0; k < taps * kSimdWidth; k += kSimdWidth)
        store_simd<A>(grad_row + k,
                      load_simd<A>(weight_row + k) * (load_simd<A>(grad_row + k) - mean));
    }
    return grads;
  }

  // The last layer for some columns: adds the gradients of its weight and bias, and returns those
  // of the hidden features before the ReLU.
  Matrix<A> last_layer_gradients(Matrix<const A> grads, Matrix<const A> hidden) {
    const VectorSums at = vector_sums(p);
    multiply<A>(grads, transposed(hidden), nullptr, true,
                {sums + at.weight2, hidden_pitch(), p.outputs, hidden_pitch()});
    add_rows<A>(grads, sums + at.bias2);
    const Matrix<A> grad_hidden = {memory + buffers.grad_hidden, hidden.columns, p.hidden,
                                   hidden.columns};
    multiply<A>({Features::parameter(pointers.weight2_t), p.outputs, p.hidden, p.outputs}, grads,
                nullptr, false, grad_hidden);
    mask_gradient<A>(hidden, grad_hidden);
    add_rows<A>(grad_hidden, sums + at.shift2);
    return grad_hidden;
  }

  void run_pair_gradients() {
    const Matrix<A> features = all_features(), hidden = all_hidden();
    const Matrix<A> logits = {memory + buffers.logits, taps * kSimdWidth, p.outputs,
                              taps * kSimdWidth};
    for (int64_t first = 0; first < taps; first += p.chunk) {
      const int64_t last = int_min(first + p.chunk, taps);
      const Matrix<A> part = columns_of(hidden, first, last);
      Features::pair_hidden(first, last, columns_of(features, first, last), part);
      Base::last_layer(part, logits, first);
    }
    for (int64_t g = 0; g < p.groups; ++g) softmax_taps<A>(logits.data + g * logits.pitch, taps);
    const Matrix<A> grads = pair_logit_gradients(logits);
    for (int64_t first = 0; first < taps; first += p.chunk) {
      const int64_t last = int_min(first + p.chunk, taps);
      const Matrix<A> grad_hidden =
          last_layer_gradients(columns_of(grads, first, last), columns_of(hidden, first, last));
      add_pair_gradients(first, last, columns_of(features, first, last), grad_hidden);
    }
  }

  // From the gradients of hidden features of taps [first, last) on.
  void add_pair_gradients(int64_t first, int64_t last, Matrix<A> features, Matrix<A> grad_hidden) {
    const Matrix<A> grads =
        first_layer_gradients(features, 0, grad_hidden, transposed(grad_hidden));
    add_pairs(first, last, grads, features.data, features.pitch);
  }

  void run_pair_statistics() {
    for (int64_t first = 0; first < taps; first += p.chunk) {
      const int64_t last = int_min(first + p.chunk, taps);
      const Matrix<A> features = columns_of(all_features(), first, last);
      if (p.has_hidden) {
        const Matrix<A> hidden = columns_of(all_hidden(), first, last);
        Features::pair_hidden(first, last, features, hidden);
        statistic_gradients(hidden, 0);
        add_pair_gradients(first, last, features, hidden);
      } else {
        Features::template pair_features<false>(first, last, features);
        statistic_gradients(features, 0);
        add_pairs(first, last, features, nullptr, 0);
      }
    }
  }

  // Patchwise: the gradients of hidden features before the ReLU. Adds those of values and of the
  // last layer.
  Matrix<A> patch_hidden_gradients(Matrix<A> hidden) {
    const VectorSums at = vector_sums(p);
    const Matrix<A> grad_hidden = {memory + buffers.grad_hidden, hidden.pitch, p.hidden,
                                   hidden.columns};
    const Matrix<A> hidden_t = transposed(hidden);
    for (int64_t g = 0; g < p.groups; ++g) {
      const Matrix<A> weights = Base::patch_weights(g, hidden);
      const Matrix<A> grads = {memory + buffers.grad_logits, weights.pitch, taps, weights.columns};
      for (int64_t v = 0; v < vector_count; ++v)
        group_gradients<A>(p, Features::value(), grad_values, value_taps + v * taps,
                           vectors[v].lanes, g, grad(v), weights.data + v * kSimdWidth,
                           grads.data + v * kSimdWidth, weights.pitch);
      multiply<A>(
          grads, hidden_t, nullptr, true,
          {sums + at.weight2 + g * taps * hidden_pitch(), hidden_pitch(), taps, hidden_pitch()});
      add_rows<A>(grads, sums + at.bias2 + g * taps * kSimdWidth);
      const A* weight_t = Features::parameter(pointers.weight2_t) + g * taps;
      multiply<A>({weight_t, p.outputs, p.hidden, taps}, grads, nullptr, g > 0, grad_hidden);
    }
    mask_gradient<A>(hidden, grad_hidden);
    add_rows<A>(grad_hidden, sums + at.shift2);
    return grad_hidden;
  }

  // From the gradients of patchwise hidden features on.
  void add_patch_gradients(Matrix<A> grad_hidden) {
    const Matrix<A> grad_hidden_t = transposed(grad_hidden);
    for (int64_t first = 0; first < p.features; first += p.chunk) {
      const int64_t last = int_min(first + p.chunk, p.features);
      const Matrix<A> features = {memory + buffers.features, grad_hidden.pitch, last - first,
                                  grad_hidden.columns};
      Features::template patch_features<true>(first, last, features);
      const Matrix<A> grads = first_layer_gradients(features, first, grad_hidden, grad_hidden_t);
      add_patch(first, last, grads, features.data, features.pitch);
    }
  }

  void run_patch_statistics() {
    const int64_t columns = Features::columns();
    if (p.has_hidden) {
      const Matrix<A> hidden = {memory + buffers.hidden, columns, p.hidden, columns};
      Features::patch_hidden(hidden);
      statistic_gradients(hidden, 0);
      add_patch_gradients(hidden);
      return;
    }
    for (int64_t first = 0; first < p.features; first += p.chunk) {
      const int64_t last = int_min(first + p.chunk, p.features);
      const Matrix<A> features = {memory + buffers.features, columns, last - first, columns};
      Features::template patch_features<false>(first, last, features);
      statistic_gradients(features, first);
      add_patch(first, last, features, nullptr, 0);
    }
  }

  void run_tile(int64_t tile) {
    begin_tile(tile);
    if (p.mode == kStatisticGradients) {
      if (p.patchwise)
        run_patch_statistics();
      else
        run_pair_statistics();
    } else if (p.patchwise) {
      add_patch_gradients(patch_hidden_gradients(Base::patch_activations()));
    } else {
      run_pair_gradients();
    }
    end_tile();
  }
};

// Strips [begin, end), or, of the backward pass, parts.
template <typename T, typename A>
void run_vector_attention(const VectorParams& p, const VectorPointers& pointers, void* memory,
                          int64_t begin, int64_t end) {
  if (p.mode == kStatistics) {
    StatisticsTile<T, A> statistics(p, pointers, memory);
    for (int64_t strip = begin; strip < end; ++strip) statistics.run_strip(strip);
    return;
  }
  if (p.mode == kResult) {
    ForwardTile<T, A> forward(p, pointers, memory);
    for (int64_t strip = begin; strip < end; ++strip) {
      forward.begin_strip(strip);
      for (int64_t tile = 0; tile < forward.tiles(); ++tile) forward.run_tile(tile);
    }
    return;
  }
  BackwardTile<T, A> backward(p, pointers, memory);
  const int64_t strips = strip_count(p);
  for (int64_t part = begin; part < end; ++part) {
    backward.begin_part(part);
    for (int64_t strip = part * strips / p.parts; strip < (part + 1) * strips / p.parts; ++strip) {
      backward.begin_strip(strip);
      for (int64_t tile = 0; tile < backward.tiles(); ++tile) backward.run_tile(tile);
    }
  }
}

// Adds up the gradients of packed keys or values of all strips, for items [begin, end): channels of
// images.
template <typename A>
void fold_vector_strips(const VectorParams& p, const VectorPointers& pointers, void* strips,
                        int64_t channels, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    A* map = static_cast<A*>(pointers.grad_map) + item * p.height * p.width;
    fold_strips<A>(p, static_cast<const A*>(strips), channels, item / channels, item % channels,
                   map);
  }
}

}  // namespace mmrednet::MMREDNET_ISA
