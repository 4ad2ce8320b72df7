// Vector attention up to its hidden features: relations of queries and keys, their norm and ReLU,
// and the first layer of gamma.

#pragma once

#include <cstdint>
#include <type_traits>

#include "integers.h"
#include "isa.h"
#include "matrix.h"
#include "simd.h"
#include "small_gemm.h"
#include "vector_params.h"
#include "vector_strip.h"

namespace mmrednet::MMREDNET_ISA {

template <VectorRelation kRelation, typename A>
inline Simd<A> relate(Simd<A> query, Simd<A> key) {
  if constexpr (kRelation == kSubtraction) return query - key;
  if constexpr (kRelation == kSummation) return query + key;
  if constexpr (kRelation == kHadamard) return query * key;
  return key;
}

// Calls function(constant) with a relation as a constant. Channels of positions are subtracted.
template <typename Function>
inline void with_relation(const VectorParams& p, int64_t channel, Function function) {
  const VectorRelation relation = channel < p.content ? p.relation : kSubtraction;
  if (relation == kSubtraction)
    function(std::integral_constant<VectorRelation, kSubtraction>());
  else if (relation == kSummation)
    function(std::integral_constant<VectorRelation, kSummation>());
  else if (relation == kHadamard)
    function(std::integral_constant<VectorRelation, kHadamard>());
  else
    function(std::integral_constant<VectorRelation, kConcatenation>());
}

// Calls function(true or false as a constant): whether all lanes lie in one row.
template <typename A, typename Function>
inline void with_rows(const Lanes<A>& lanes, Function function) {
  if (lanes.segments == 1)
    function(std::true_type());
  else
    function(std::false_type());
}

// Replaces negative elements by zero.
template <typename A>
inline Simd<A> positive_part(Simd<A> x) {
  return x > 0 ? x : Simd<A>{};
}

template <typename A>
inline void apply_relu(Matrix<A> x) {
  for (int64_t i = 0; i < x.rows; ++i)
    for (int64_t j = 0; j < x.columns; j += kSimdWidth) {
      A* target = x.data + i * x.pitch + j;
      store_simd<A>(target, positive_part<A>(load_simd<A>(target)));
    }
}

// A vector of 16 outputs: its place in the strip, and the queries there.
template <typename A>
struct OutputVector {
  Lanes<A> lanes;
  // (channels, 16)
  Matrix<A> query;
};

// A thread at work on a strip: its buffers and the tile that it computes. Pairwise, a matrix of
// features has a column for each tap and output, vector by vector; patchwise, for each output.
template <typename T, typename A>
struct FeatureTile {
  const VectorParams& p;
  const VectorPointers& pointers;
  const VectorBuffers buffers;
  A* memory;
  const int64_t taps;
  const bool has_values;
  // where the taps of each vector begin in packed keys and values
  Offsets *key_taps, *value_taps;
  Strip strip = {};
  // at most three vectors
  int64_t vector_count = 0;
  OutputVector<A> vectors[3];

  FeatureTile(const VectorParams& params, const VectorPointers& tensors, void* workspace)
      : p(params),
        pointers(tensors),
        buffers(vector_buffers(params)),
        memory(static_cast<A*>(workspace)),
        taps(num_taps(params.window)),
        has_values(params.mode == kResult || params.mode == kGradients) {
    key_taps = reinterpret_cast<Offsets*>(memory + buffers.taps);
    value_taps = key_taps + p.vectors * taps;
    // lanes that are no outputs may read these buffers before they are written
    for (int64_t i = 0; i < buffers.size; ++i) memory[i] = 0;
  }

  const A* key() const { return memory + buffers.key; }
  const A* value() const { return memory + buffers.value; }

  static const A* parameter(const void* pointer) { return static_cast<const A*>(pointer); }

  int64_t columns() const { return vector_count * kSimdWidth; }
  int64_t tiles() const { return ceil_div(strip.rows * p.out_width, p.vectors * kSimdWidth); }

  void begin_strip(int64_t index) {
    strip = strip_at(p, index);
    const T* keys = static_cast<const T*>(pointers.key) + strip.image * p.key.b;
    pack_strip<T, A>(p, strip, keys, p.key, p.channels, memory + buffers.key);
    if (!has_values) return;
    const T* values = static_cast<const T*>(pointers.value) + strip.image * p.value.b;
    pack_strip<T, A>(p, strip, values, p.value, p.value_channels, memory + buffers.value);
  }

  void begin_tile(int64_t tile) {
    const int64_t outputs = strip.rows * p.out_width, step = p.vectors * kSimdWidth;
    vector_count = 0;
    for (int64_t first = tile * step; first < int_min(outputs, (tile + 1) * step);
         first += kSimdWidth) {
      OutputVector<A>& vector = vectors[vector_count];
      vector.lanes = Lanes<A>(p, first, outputs);
      A* data = memory + buffers.query + vector_count * p.channels * kSimdWidth;
      vector.query = {data, kSimdWidth, p.channels, kSimdWidth};
      pack_outputs<T, A>(strip, vector.lanes, static_cast<const T*>(pointers.query), p.query,
                         vector.query);
      find_taps(vector.lanes, p.channels, key_taps + vector_count * taps);
      if (has_values) find_taps(vector.lanes, p.value_channels, value_taps + vector_count * taps);
      ++vector_count;
    }
  }

  void find_taps(const Lanes<A>& lanes, int64_t channels, Offsets* target) const {
    for (int64_t k = 0; k < taps; ++k) target[k] = tap_offsets<A>(p, lanes, channels, k);
  }

  // Pairwise relations of taps [begin, end): a row for each feature. With `kNormed` the norm and
  // the ReLU follow.
  template <bool kNormed>
  void pair_features(int64_t begin, int64_t end, Matrix<A> target) const {
    const Lanes<A>& lanes = vectors[0].lanes;
    const A *scale = parameter(pointers.scale1), *shift = parameter(pointers.shift1);
    const auto run = [&](int64_t first, int64_t last) {
      with_rows(lanes, [&](auto one_row) {
        with_relation(p, first, [&](auto relation) {
          for (int64_t c = first; c < last; ++c) {
            const Simd<A> q = load_simd<A>(vectors[0].query.data + c * kSimdWidth);
            A* row = target.data + c * target.pitch;
            for (int64_t tap = begin; tap < end; ++tap, row += kSimdWidth) {
              const Simd<A> k = load_tap<one_row, A>(key() + c * p.pitch, key_taps[tap], lanes);
              Simd<A> x = relate<relation, A>(q, k);
              if constexpr (kNormed) x = positive_part<A>(x * scale[c] + shift[c]);
              store_simd<A>(row, x);
            }
          }
        });
      });
    };
    if (p.content > 0) run(0, p.content);
    if (p.content < p.channels) run(p.content, p.channels);
  }

  // Patchwise features [begin, end), multiples of the number of channels: those of the centre, and
  // then those of one tap after another.
  template <bool kNormed>
  void patch_features(int64_t begin, int64_t end, Matrix<A> target) const {
    const A *scale = parameter(pointers.scale1), *shift = parameter(pointers.shift1);
    for (int64_t v = 0; v < vector_count; ++v) {
      const Lanes<A>& lanes = vectors[v].lanes;
      for (int64_t first = begin; first < end; first += p.channels) {
        A* rows = target.data + (first - begin) * target.pitch + v * kSimdWidth;
        const auto store = [&](int64_t c, Simd<A> x) {
          if constexpr (kNormed) x = positive_part<A>(x * scale[first + c] + shift[first + c]);
          store_simd<A>(rows + c * target.pitch, x);
        };
        if (first == 0) {
          for (int64_t c = 0; c < p.channels; ++c)
            store(c, load_simd<A>(vectors[v].query.data + c * kSimdWidth));
          continue;
        }
        const Offsets& tap_at = key_taps[v * taps + first / p.channels - 1];
        with_rows(lanes, [&](auto one_row) {
          for (int64_t c = 0; c < p.channels; ++c)
            store(c, load_tap<one_row, A>(key() + c * p.pitch, tap_at, lanes));
        });
      }
    }
  }

  // The first layer: hidden = weight1 * features + bias1.
  void first_layer(Matrix<const A> features, int64_t first_feature, Matrix<A> hidden) const {
    const Matrix<const A> weight = {parameter(pointers.weight1) + first_feature, p.features,
                                    p.hidden, features.rows};
    multiply<A>(weight, features, parameter(pointers.bias1), first_feature > 0, hidden);
  }

  // Pairwise hidden features of taps [begin, end), before the ReLU.
  void pair_hidden(int64_t begin, int64_t end, Matrix<A> features, Matrix<A> hidden) const {
    pair_features<true>(begin, end, features);
    first_layer(features, 0, hidden);
  }

  // Patchwise hidden features, before the ReLU.
  void patch_hidden(Matrix<A> hidden) const {
    for (int64_t first = 0; first < p.features; first += p.chunk) {
      const int64_t last = int_min(first + p.chunk, p.features);
      const Matrix<A> features = {memory + buffers.features, columns(), last - first, columns()};
      patch_features<true>(first, last, features);
      first_layer(features, first, hidden);
    }
  }
};

}  // namespace mmrednet::MMREDNET_ISA
