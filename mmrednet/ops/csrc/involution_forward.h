// Involution with its kernel generation fused: kernels of one tile of one group are generated into
// the workspace, where they fit the first-level cache, and used from there.

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
#include "simd_pairs.h"
#include "small_gemm.h"
#include "transpose.h"
#include "workspace.h"

namespace mmrednet::MMREDNET_ISA {

// Packs the hidden features of outputs [first, first + target.columns) of an image, numbered row by
// row: a matrix row for each feature or pair of features, with zeros behind the last output.
template <typename T, typename A>
void pack_hidden(const InvolutionParams& p, const T* source, int64_t first, Matrix<A> target) {
  const Strides& strides = p.hidden_strides;
  const int64_t width = p.local.out_width;
  for (int64_t i = 0; i < target.columns;) {
    const int64_t y = (first + i) / width, x = (first + i) % width;
    const int64_t length = int_min(target.columns - i, width - x);
    pack_queries<kChannelPacking<T>, T, A>({target.data + i, target.pitch, target.rows, length},
                                           source + y * strides.h + x * strides.w,
                                           p.hidden_channels, strides.c, strides.w);
    i += length;
  }
  zero_columns(target, target.columns);
}

// Elements in the accumulator type: converted into `target`, or, if they have it, where they are.
template <typename T, typename A>
inline const A* widen(const T* source, int64_t count, A* target) {
  for (int64_t i = 0; i < count; ++i) target[i] = load<A>(source[i]);
  return target;
}
template <typename A>
inline const A* widen(const A* source, int64_t, A*) {
  return source;
}

// A tile of one group of one image.
struct Tile {
  int64_t image, tile, group;
};

// The order of work. In a channels-last map the groups of a tile follow one another, and share its
// hidden features. In any other map the rows of a group do, and share packed rows of the map.
inline Tile tile_index(const InvolutionParams& p, int64_t item) {
  const int64_t groups = p.local.groups;
  const int64_t image = item / p.tiles / groups;
  const int64_t remainder = item % (p.tiles * groups);
  if (p.channels_last) return {image, remainder / groups, remainder % groups};
  return {image, remainder % p.tiles, remainder / p.tiles};
}

// Generates the kernels of one tile after another. What consecutive tiles share is read once: the
// hidden features of a tile, or the weight of a group.
template <typename T, typename A>
struct KernelGenerator {
  const InvolutionParams& p;
  const InvolutionPointers& pointers;
  int64_t taps;
  // first output of the current tile, and number of its outputs
  int64_t first = 0, outputs = 0;
  // a row for each hidden channel, and a row for each tap; or for pairs of them, each row of the
  // window having its own
  Matrix<A> hidden = {}, kernels = {};

  KernelGenerator(const InvolutionParams& params, const InvolutionPointers& tensors, void* memory)
      : p(params), pointers(tensors), taps(num_taps(params.local.window)) {
    hidden.data = static_cast<A*>(memory);
    kernels.data = hidden.data + p.hidden_channels * p.tile_pitch;
    widened = kernels.data + taps * p.tile_pitch;
  }

  // Generates the kernels of a tile: weight * hidden + bias.
  void generate(const Tile& tile) {
    if (current_tile != tile.image * p.tiles + tile.tile) read_hidden(tile);
    if (current_group != tile.group) read_weight(tile.group);
    // whole vectors: hidden features are zero behind the last output
    const Matrix<A> whole_kernels = {kernels.data, kernels.pitch, taps, kernels.pitch};
    if constexpr (kDotsPairs<T>)
      generate_pairs(whole_kernels);
    else
      multiply<A>(weight, hidden, bias, false, whole_kernels);
  }

  // Distance of the kernels of neighbouring rows of the window.
  int64_t row_stride() const { return weight_rows<T>(p.local.window.kernel_w) * kernels.pitch; }

 private:
  Matrix<const A> weight = {};
  // the weight of a group where numbers are multiplied in pairs, and the pitch of its rows
  const T* numbers = nullptr;
  int64_t numbers_pitch = 0;
  const A* bias = nullptr;
  // place for weight and bias in the accumulator type
  A* widened;
  int64_t current_tile = -1, current_group = -1;

  void read_hidden(const Tile& tile) {
    current_tile = tile.image * p.tiles + tile.tile;
    first = tile.tile * p.tile_size;
    outputs = int_min(p.local.out_height * p.local.out_width - first, p.tile_size);
    const int64_t pitch = round_up(outputs);
    const int64_t rows = kDotsPairs<T> ? num_pairs(p.hidden_channels) : p.hidden_channels;
    hidden = {hidden.data, pitch, rows, outputs};
    kernels = {kernels.data, pitch, taps, outputs};
    const T* source = static_cast<const T*>(pointers.hidden) + tile.image * p.hidden_strides.b;
    pack_hidden<T, A>(p, source, first, hidden);
  }

  void read_weight(int64_t group) {
    current_group = group;
    const int64_t size = taps * p.hidden_channels;
    const T* group_weight = static_cast<const T*>(pointers.weight) + group * size;
    const T* group_bias = static_cast<const T*>(pointers.bias) + group * taps;
    bias = widen(group_bias, taps, widened + size);
    if constexpr (kDotsPairs<T>)
      read_numbers(group_weight);
    else
      weight = {widen(group_weight, size, widened), p.hidden_channels, taps, p.hidden_channels};
  }

  // Pairs are read from the tensor, unless an odd row needs a zero behind it.
  void read_numbers(const T* group_weight) {
    const int64_t columns = p.hidden_channels;
    numbers = group_weight;
    numbers_pitch = columns;
    if (columns % 2 == 0) return;
    T* copy = reinterpret_cast<T*>(widened);
    numbers = copy;
    numbers_pitch = columns + 1;
    for (int64_t k = 0; k < taps; ++k) {
      for (int64_t r = 0; r < columns; ++r)
        copy[k * numbers_pitch + r] = group_weight[k * columns + r];
      copy[k * numbers_pitch + columns] = T{};
    }
  }

  // Generates kernels in pairs of taps, row by row of the window.
  void generate_pairs(Matrix<A> target) {
    const Window& window = p.local.window;
    for (int64_t u = 0; u < window.kernel_h; ++u) {
      const int64_t first = u * window.kernel_w;
      const Matrix<A> row = target.from(u * num_pairs(window.kernel_w), 0);
      multiply_to_pairs<T, A>(numbers + first * numbers_pitch, numbers_pitch, window.kernel_w,
                              hidden, bias + first, row);
    }
  }
};

// Applies scale, shift and ReLU to some outputs of one row, while they are in the cache.
template <typename T, typename A>
void apply_affine(const LocalParams& p, const InvolutionPointers& pointers, int64_t group,
                  T* result, int64_t outputs) {
  if (pointers.scale == nullptr) return;
  const A* scale = static_cast<const A*>(pointers.scale) + group * p.channels;
  const A* shift = static_cast<const A*>(pointers.shift) + group * p.channels;
  const int64_t channel_stride = p.result.c, output_stride = p.result.w;
  const auto affine = [&](T element, int64_t d) {
    const A value = load<A>(element) * scale[d] + shift[d];
    return store<T>(pointers.relu && value < 0 ? A{0} : value);
  };
  // the inner loop runs along contiguous memory
  if (channel_stride == 1) {
    for (int64_t x = 0; x < outputs; ++x)
      for (int64_t d = 0; d < p.channels; ++d)
        result[x * output_stride + d] = affine(result[x * output_stride + d], d);
    return;
  }
  for (int64_t d = 0; d < p.channels; ++d) {
    T* row = result + d * channel_stride;
    for (int64_t x = 0; x < outputs; ++x)
      row[x * output_stride] = affine(row[x * output_stride], d);
  }
}

// A tile of a channels-last map: outputs that may begin and end within a row.
template <typename T, typename A>
void involution_tile(const KernelGenerator<T, A>& generator, const T* value, T* result,
                     int64_t group) {
  const LocalParams& p = generator.p.local;
  const Matrix<A>& kernels = generator.kernels;
  const int64_t end = generator.first + generator.outputs;
  for (int64_t output = generator.first; output < end;) {
    const int64_t y = output / p.out_width, x = output % p.out_width;
    const int64_t length = int_min(end - output, p.out_width - x);
    const A* first = kernels.data + output - generator.first;
    T* target = result + y * p.result.h + x * p.result.w;
    if constexpr (kDotsPairs<T>) {
      const PairView<A> weights = {first, generator.row_stride(), kernels.pitch};
      aggregate_pair_span<T, A>(p, value, weights, target, y, x, x + length);
    } else {
      const WeightView<A> weights = {first, generator.row_stride(), kernels.pitch, 1};
      aggregate_span<T, A>(p, value, weights, target, y, x, x + length);
    }
    apply_affine<T, A>(p, generator.pointers, group, target, length);
    output += length;
  }
}

// A tile of any other map: row y of the outputs.
template <typename T, typename A>
void involution_row(const KernelGenerator<T, A>& generator, AggregateRows<T, A>& rows, T* result,
                    int64_t group, int64_t y) {
  const LocalParams& p = rows.p;
  rows.pack_window(y);
  aggregate_row<T, A, false>(rows, generator.kernels, result, y);
  apply_affine<T, A>(p, generator.pointers, group, result + y * p.result.h, generator.outputs);
}

// Tiles [begin, end) of all groups and images. `memory` has params.workspace_bytes.
template <typename T, typename A>
void run_involution(const InvolutionParams& params, const InvolutionPointers& pointers,
                    void* memory, int64_t begin, int64_t end) {
  const LocalParams& p = params.local;
  char* packed_rows = static_cast<char*>(memory);
  const int64_t bytes = params.channels_last ? 0 : packed_rows_bytes(p, sizeof(A));
  if (!params.channels_last) AggregateRows<T, A>::invalidate(packed_rows, 1, bytes);
  KernelGenerator<T, A> generator(params, pointers, packed_rows + bytes);
  for (int64_t item = begin; item < end; ++item) {
    const Tile tile = tile_index(params, item);
    const int64_t image = tile.image, group = tile.group;
    const T* value = static_cast<const T*>(pointers.value) + image * p.first.b + group * p.first.g;
    T* result = static_cast<T*>(pointers.result) + image * p.result.b + group * p.result.g;
    generator.generate(tile);
    if (params.channels_last) {
      involution_tile(generator, value, result, group);
      continue;
    }
    AggregateRows<T, A> rows(p, p.first, packed_rows, value);
    involution_row(generator, rows, result, group, tile.tile);
  }
}

}  // namespace mmrednet::MMREDNET_ISA
