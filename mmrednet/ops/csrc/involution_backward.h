// The backward pass of involution: kernels generated again, for the gradient of the value, and the
// gradients of hidden features, weight and bias.

#pragma once

#include <cstdint>

#include "correlate.h"
#include "integers.h"
#include "involution_forward.h"
#include "isa.h"
#include "matrix.h"
#include "packed_rows.h"
#include "params.h"
#include "simd.h"
#include "small_gemm.h"
#include "transpose.h"
#include "workspace.h"

namespace mmrednet::MMREDNET_ISA {

// Stores the kernels of a tile: a row for each tap.
template <typename T, typename A>
void unpack_kernels(const KernelGenerator<T, A>& generator, T* target, int64_t pitch) {
  const Matrix<A>& kernels = generator.kernels;
  if constexpr (!kDotsPairs<T>) {
    unpack_matrix<T, A>(target, pitch, 1, kernels);
  } else {
    const int64_t kernel_w = generator.p.local.window.kernel_w;
    for (int64_t k = 0; k < generator.taps; ++k) {
      const int64_t u = k / kernel_w, t = k % kernel_w;
      const A* row = kernels.data + u * generator.row_stride() + t / 2 * kernels.pitch;
      for (int64_t x = 0; x < kernels.columns; x += kSimdWidth) {
        const Simd<A> pairs = load_simd<A>(row + x);
        store_columns<T, A>(target + k * pitch + x,
                            t % 2 ? second_number<A>(pairs) : first_number<A>(pairs),
                            kernels.columns - x);
      }
    }
  }
}

// Stores the hidden features of a tile: a row for each output.
template <typename T, typename A>
void store_features(const KernelGenerator<T, A>& generator, const Tile& tile, A* target,
                    int64_t pitch) {
  if constexpr (!kDotsPairs<T>) return unpack_matrix<A, A>(target, 1, pitch, generator.hidden);
  const InvolutionParams& p = generator.p;
  const Strides& strides = p.hidden_strides;
  const T* hidden = static_cast<const T*>(generator.pointers.hidden) + tile.image * strides.b;
  for (int64_t i = 0; i < generator.outputs; ++i) {
    const int64_t output = generator.first + i;
    const T* source =
        hidden + output / p.local.out_width * strides.h + output % p.local.out_width * strides.w;
    for (int64_t r = 0; r < p.hidden_channels; ++r)
      target[i * pitch + r] = load<A>(source[r * strides.c]);
  }
}

// Stores the kernels of tiles [begin, end), and once for each tile its hidden features, with those
// of an output contiguous.
template <typename T, typename A>
void store_kernels(const InvolutionParams& params, const InvolutionPointers& pointers,
                   void* features, void* memory, int64_t begin, int64_t end) {
  const LocalParams& p = params.local;
  const int64_t outputs = p.out_height * p.out_width;
  const int64_t pitch = round_up(params.hidden_channels);
  KernelGenerator<T, A> generator(params, pointers, memory);
  for (int64_t item = begin; item < end; ++item) {
    const Tile tile = tile_index(params, item);
    generator.generate(tile);
    const int64_t group_index = tile.image * p.groups + tile.group;
    T* kernels = static_cast<T*>(pointers.result) + group_index * generator.taps * outputs;
    unpack_kernels<T, A>(generator, kernels + generator.first, outputs);
    // all groups have the same hidden features
    if (tile.group > 0) continue;
    A* tile_features = static_cast<A*>(features) + (tile.image * outputs + generator.first) * pitch;
    store_features<T, A>(generator, tile, tile_features, pitch);
    zero_columns<A>({tile_features, pitch, generator.outputs, pitch}, params.hidden_channels);
  }
}

// Adds the elements of each row of a matrix to sums[row]. Its columns are whole vectors.
template <typename A>
void add_row_sums(Matrix<const A> matrix, A* sums) {
  for (int64_t k = 0; k < matrix.rows; ++k) {
    Simd<A> sum = {};
    for (int64_t x = 0; x < matrix.columns; x += kSimdWidth)
      sum += load_simd<A>(matrix.data + k * matrix.pitch + x);
    for (int n = 0; n < kSimdWidth; ++n) sums[k] += sum[n];
  }
}

// Gradients of the kernels of rows [y, y_end) of one group: a matrix row for each tap, zeros behind
// the last output.
template <typename T, typename A>
void correlate_rows(const InvolutionBackwardParams& params, const T* grad,
                    PackedRows<T, A, kChannelPacking<T>>& values, int64_t y, int64_t y_end,
                    Matrix<A> grads, Matrix<A> kernel_grads) {
  const LocalParams& p = params.local;
  const Strides& strides = p.first;
  const int64_t width = p.out_width;
  for (int64_t row = y; row < y_end; ++row) {
    const Matrix<A> target = grads.from(0, (row - y) * width);
    pack_queries<kChannelPacking<T>, T, A>({target.data, target.pitch, target.rows, width},
                                           grad + row * strides.h, p.channels, strides.c,
                                           strides.w);
  }
  zero_columns(grads, grads.columns);
  // In this order, because a row is computed in whole vectors: the next one overwrites what it has
  // left behind its end.
  for (int64_t row = y; row < y_end; ++row) {
    const int64_t column = (row - y) * width;
    correlate_row<T, A>(values, grads.from(0, column), kernel_grads.from(0, column), row);
  }
  zero_columns(kernel_grads, kernel_grads.columns);
}

// The sums that one tile of one group adds to: those of its chunk for weight and bias, and those of
// its block for the hidden features.
template <typename A>
struct PartialSums {
  A *weight, *bias, *hidden;
};

// Adds the gradients of a tile. The first group of a block begins the sums of the hidden features.
template <typename T, typename A>
void add_tile(const InvolutionBackwardParams& params, const InvolutionBackwardPointers& pointers,
              char* memory, const Tile& tile, bool first_of_block, PartialSums<A> sums) {
  const LocalParams& p = params.local;
  const int64_t image = tile.image, group = tile.group;
  const int64_t taps = num_taps(p.window), pitch = params.tile_pitch;
  const int64_t hidden = params.hidden_channels, features_pitch = round_up(hidden);
  const int64_t y = tile.tile * params.tile_rows;
  const int64_t y_end = int_min(y + params.tile_rows, p.out_height);
  const int64_t outputs = (y_end - y) * p.out_width;

  A* workspace = reinterpret_cast<A*>(memory + packed_rows_bytes(p, sizeof(A)));
  const T* value = static_cast<const T*>(pointers.value) + image * p.second.b + group * p.second.g;
  PackedRows<T, A, kChannelPacking<T>> values(p, p.second, memory, value);
  const Matrix<A> grads = {workspace, pitch, values.channels, outputs};
  const Matrix<A> kernel_grads = {workspace + p.channels * pitch, pitch, taps, outputs};
  const T* grad = static_cast<const T*>(pointers.grad) + image * p.first.b + group * p.first.g;
  correlate_rows(params, grad, values, y, y_end, grads, kernel_grads);

  // weight: kernel gradients times hidden features
  const A* features = static_cast<const A*>(pointers.features) +
                      (image * p.out_height + y) * p.out_width * features_pitch;
  multiply<A>(kernel_grads, {features, features_pitch, outputs, features_pitch}, nullptr, true,
              {sums.weight, features_pitch, taps, features_pitch});
  // bias: the sum of the kernel gradients
  const int64_t columns = round_up(outputs);
  add_row_sums<A>({kernel_grads.data, pitch, taps, columns}, sums.bias);
  // hidden features: weight, transposed, times kernel gradients
  const A* weight = static_cast<const A*>(pointers.weight) + group * hidden * taps;
  multiply<A>({weight, taps, hidden, taps}, kernel_grads, nullptr, !first_of_block,
              {sums.hidden, pitch, hidden, columns});
}

// Parts [begin, end) of the gradients of weight, bias and hidden features. A part is a chunk of
// tiles of a block of groups.
template <typename T, typename A>
void run_kernel_gradients(const InvolutionBackwardParams& params,
                          const InvolutionBackwardPointers& pointers, void* memory, int64_t begin,
                          int64_t end) {
  const LocalParams& p = params.local;
  const int64_t taps = num_taps(p.window), features_pitch = round_up(params.hidden_channels);
  char* workspace = static_cast<char*>(memory);
  PackedRows<T, A>::invalidate(workspace, 1, 0);
  for (int64_t part = begin; part < end; ++part) {
    const int64_t chunk = part / params.blocks, block = part % params.blocks;
    const int64_t first_group = block * params.block_groups;
    const int64_t group_end = int_min(first_group + params.block_groups, p.groups);
    const int64_t tile_end = int_min((chunk + 1) * params.chunk_tiles, params.tiles);
    for (int64_t group = first_group; group < group_end; ++group) {
      const int64_t sum = chunk * p.groups + group;
      PartialSums<A> sums;
      sums.weight = static_cast<A*>(pointers.weight_sums) + sum * taps * features_pitch;
      sums.bias = static_cast<A*>(pointers.bias_sums) + sum * taps;
      for (int64_t i = 0; i < taps * features_pitch; ++i) sums.weight[i] = 0;
      for (int64_t i = 0; i < taps; ++i) sums.bias[i] = 0;
      for (int64_t i = chunk * params.chunk_tiles; i < tile_end; ++i) {
        const int64_t block_tile = block * params.tiles + i;
        sums.hidden = static_cast<A*>(pointers.hidden_sums) +
                      block_tile * params.hidden_channels * params.tile_pitch;
        const Tile tile = {i / params.image_tiles, i % params.image_tiles, group};
        add_tile<T, A>(params, pointers, workspace, tile, group == first_group, sums);
      }
    }
  }
}

// Stores the gradients of the hidden features of tiles [begin, end): the sums of all blocks, added
// in order.
template <typename T, typename A>
void store_hidden_gradients(const InvolutionBackwardParams& params,
                            const InvolutionBackwardPointers& pointers, int64_t begin,
                            int64_t end) {
  const LocalParams& p = params.local;
  const Strides& strides = params.hidden_strides;
  const int64_t size = params.hidden_channels * params.tile_pitch;
  for (int64_t tile = begin; tile < end; ++tile) {
    A* sums = static_cast<A*>(pointers.hidden_sums) + tile * size;
    for (int64_t block = 1; block < params.blocks; ++block)
      for (int64_t i = 0; i < size; ++i) sums[i] += sums[block * params.tiles * size + i];
    const int64_t image = tile / params.image_tiles;
    const int64_t y = tile % params.image_tiles * params.tile_rows;
    const int64_t y_end = int_min(y + params.tile_rows, p.out_height);
    T* target = static_cast<T*>(pointers.grad_hidden) + image * strides.b;
    for (int64_t row = y; row < y_end; ++row) {
      const Matrix<const A> row_sums = {sums + (row - y) * p.out_width, params.tile_pitch,
                                        params.hidden_channels, p.out_width};
      unpack_matrix<T, A>(target + row * strides.h, strides.c, strides.w, row_sums);
    }
  }
}

}  // namespace mmrednet::MMREDNET_ISA
