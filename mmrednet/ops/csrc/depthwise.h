// Depth-wise convolution: see mmrednet/ops/depthwise.py.
//
// Vectors run along 16 channels. The rows of the map that a row of outputs needs are packed into
// the workspace in the accumulator type, with zeros beside the map. So the loops over taps know
// neither layout nor dtype nor border. A packed row serves all rows of outputs that see it.

#pragma once

#include <cstdint>

#include "depthwise_params.h"
#include "integers.h"
#include "isa.h"
#include "matrix.h"
#include "params.h"
#include "simd.h"
#include "simd_gelu.h"
#include "transpose.h"
#include "window.h"
#include "workspace.h"

namespace mmrednet::MMREDNET_ISA {

// Some rows of some blocks of one image.
struct DepthwiseItem {
  int64_t image, band, first_block, blocks, first_row, end_row;
};

inline DepthwiseItem depthwise_item(const DepthwiseParams& p, int64_t item) {
  // chunks of a band follow one another: they are neighbours in a channels-last map
  const int64_t chunk = item % p.chunks, band = item / p.chunks % p.bands;
  const int64_t first_block = chunk * p.chunk_blocks, first_row = band * p.band_rows;
  return {item / p.chunks / p.bands,
          band,
          first_block,
          int_min(p.chunk_blocks, p.blocks - first_block),
          first_row,
          int_min(first_row + p.band_rows, p.out_height)};
}

// One row of one block of a tensor with 16 channels or less.
template <typename T>
struct BlockRow {
  T* data;
  int64_t channel_stride, position_stride, channels;
};

template <typename T>
inline BlockRow<T> block_row(const DepthwiseParams& p, const Strides& strides, T* data,
                             int64_t image, int64_t block, int64_t row) {
  const int64_t channel = block * kSimdWidth;
  return {data + image * strides.b + channel * strides.c + row * strides.h, strides.c, strides.w,
          int_min(p.channels - channel, kSimdWidth)};
}

// Copies positions [0, count) of a row into vectors of 16 channels. Lanes without a channel keep
// their values.
template <typename T, typename A>
inline void pack_positions(A* target, BlockRow<const T> row, int64_t count) {
  if (row.channel_stride == 1 && row.channels == kSimdWidth) {
    for (int64_t x = 0; x < count; ++x)
      store_simd<A>(target + x * kSimdWidth,
                    load_vector<A, kSimdWidth>(row.data + x * row.position_stride));
  } else {
    pack_matrix<T, A>({target, kSimdWidth, count, row.channels}, row.data, row.position_stride,
                      row.channel_stride);
  }
}

// The way back, of vectors that are `from.pitch` apart.
template <typename T, typename A>
inline void unpack_positions(BlockRow<T> row, const A* source, int64_t count) {
  if (row.channel_stride == 1 && row.channels == kSimdWidth) {
    for (int64_t x = 0; x < count; ++x)
      store_converted<T, A, kSimdWidth>(row.data + x * row.position_stride,
                                        load_simd<A>(source + x * kSimdWidth));
  } else {
    unpack_matrix<T, A>(row.data, row.position_stride, row.channel_stride,
                        Matrix<const A>{source, kSimdWidth, count, row.channels});
  }
}

// The packed rows of an item. Row y of a block lies in slot y % slots.
template <typename T, typename A>
class DepthwiseRows {
 public:
  DepthwiseRows(const DepthwiseParams& p, const DepthwiseItem& item, const T* map, A* memory)
      : p_(p), item_(item), map_(map), memory_(memory) {
    next_ = int_max(0, item.first_row - p.window.padding_h);
    // positions beside the map stay zero, and so do lanes without a channel in the last block
    const int64_t right = p.window.padding_w + p.width;
    for (int64_t block = 0; block < item.blocks; ++block) {
      const bool full = (item.first_block + block + 1) * kSimdWidth <= p.channels;
      for (int64_t slot = 0; slot < p.slots; ++slot) {
        A* positions = row(block, slot);
        zero(positions, 0, full ? p.window.padding_w : p.pitch);
        zero(positions, right, p.pitch);
      }
    }
  }

  // Packs what row y of the outputs needs. Rows must be asked for in order.
  void advance(int64_t y) {
    const Window& window = p_.window;
    const int64_t end = y - window.padding_h + window.dilation_h * (window.kernel_h - 1) + 1;
    for (; next_ < int_min(end, p_.height); ++next_) pack(next_);
  }

  // The slot of a row of the map.
  int64_t slot(int64_t y) const { return y % p_.slots; }

  // What the first tap of output 0 sees in the row of a slot.
  A* row(int64_t block, int64_t slot) const {
    return memory_ + (block * p_.slots + slot) * p_.pitch * kSimdWidth;
  }

 private:
  static void zero(A* positions, int64_t begin, int64_t end) {
    for (int64_t i = begin * kSimdWidth; i < end * kSimdWidth; ++i) positions[i] = 0;
  }

  void pack(int64_t y) {
    for (int64_t block = 0; block < item_.blocks; ++block) {
      const auto source =
          block_row<const T>(p_, p_.map, map_, item_.image, item_.first_block + block, y);
      pack_positions<T, A>(row(block, slot(y)) + p_.window.padding_w * kSimdWidth, source,
                           p_.width);
    }
  }

  const DepthwiseParams& p_;
  const DepthwiseItem& item_;
  const T* map_;
  A* memory_;
  int64_t next_;
};

// The rows that the taps of one row of outputs see, from the first tap inside the map on.
template <typename A>
struct TapRows {
  Range taps;
  // rows of the first slot, the distance of slots, and the slots of all rows and of the first tap
  const A* first;
  int64_t slot_size, slots, slot, step;

  template <typename T>
  TapRows(const DepthwiseParams& p, const DepthwiseRows<T, A>& rows, int64_t block, int64_t y) {
    const int64_t top = y - p.window.padding_h;
    taps = taps_inside(top, p.window.dilation_h, p.height, p.window.kernel_h);
    first = rows.row(block, 0);
    slot_size = p.pitch * kSimdWidth;
    slots = p.slots;
    slot = taps.begin < taps.end ? rows.slot(top + taps.begin * p.window.dilation_h) : 0;
    // with one tap inside, the next one may be further away than there are rows
    step = p.window.dilation_h % p.slots;
  }

  // The slot of the next tap. A division for each tap would take longer than its products.
  int64_t next(int64_t current) const {
    return current + step < slots ? current + step : current + step - slots;
  }

  const A* row(int64_t current) const { return first + current * slot_size; }
};

// Neighbouring outputs that share the weights they load. Their sums stay in registers: AVX-512 has
// 32, others have 16 of half the size.
#ifdef MMREDNET_SHUFFLES
constexpr int kDepthwiseOutputs = 8;
#else
constexpr int kDepthwiseOutputs = 4;
#endif

// Sums of kDepthwiseOutputs outputs of one row, from output x on.
template <typename A>
inline void depthwise_sums(const Window& window, const TapRows<A>& rows, const A* weight,
                           Simd<A> bias, int64_t x, Simd<A>* sums) {
  const int64_t step = window.dilation_w * kSimdWidth;
  Simd<A> local[kDepthwiseOutputs];
#pragma GCC unroll 8
  for (int i = 0; i < kDepthwiseOutputs; ++i) local[i] = bias;
  int64_t slot = rows.slot;
  for (int64_t u = rows.taps.begin; u < rows.taps.end; ++u, slot = rows.next(slot)) {
    const A* source = rows.row(slot) + x * kSimdWidth;
    const A* tap = weight + u * window.kernel_w * kSimdWidth;
    for (int64_t t = 0; t < window.kernel_w; ++t, source += step, tap += kSimdWidth) {
      const Simd<A> factor = load_simd<A>(tap);
#pragma GCC unroll 8
      for (int i = 0; i < kDepthwiseOutputs; ++i)
        local[i] += factor * load_simd<A>(source + i * kSimdWidth);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kDepthwiseOutputs; ++i) sums[i] = local[i];
}

// Row y of one block of the result.
template <typename T, typename A>
inline void depthwise_block_row(const DepthwiseParams& p, const TapRows<A>& rows, const A* weight,
                                const A* bias, BlockRow<T> result) {
  Simd<A> sums[kDepthwiseOutputs];
  for (int64_t x = 0; x < p.out_width; x += kDepthwiseOutputs) {
    depthwise_sums<A>(p.window, rows, weight, load_simd<A>(bias), x, sums);
    if (p.gelu)
      for (int i = 0; i < kDepthwiseOutputs; ++i) sums[i] = gelu<A>(sums[i]);
    unpack_positions<T, A>(result, reinterpret_cast<const A*>(sums),
                           int_min(p.out_width - x, kDepthwiseOutputs));
    result.data += kDepthwiseOutputs * result.position_stride;
  }
}

// Items [begin, end) of a depth-wise convolution. `memory` has p.workspace_bytes.
template <typename T, typename A>
void run_depthwise(const DepthwiseParams& p, const DepthwisePointers& pointers, void* memory,
                   int64_t begin, int64_t end) {
  const int64_t taps = num_taps(p.window);
  for (int64_t index = begin; index < end; ++index) {
    const DepthwiseItem item = depthwise_item(p, index);
    DepthwiseRows<T, A> rows(p, item, static_cast<const T*>(pointers.map), static_cast<A*>(memory));
    for (int64_t y = item.first_row; y < item.end_row; ++y) {
      rows.advance(y);
      for (int64_t i = 0; i < item.blocks; ++i) {
        const int64_t block = item.first_block + i;
        const A* weight = static_cast<const A*>(pointers.weight) + block * taps * kSimdWidth;
        const A* bias = static_cast<const A*>(pointers.bias) + block * kSimdWidth;
        const auto result =
            block_row<T>(p, p.outputs, static_cast<T*>(pointers.result), item.image, block, y);
        depthwise_block_row<T, A>(p, TapRows<A>(p, rows, i, y), weight, bias, result);
      }
    }
  }
}

}  // namespace mmrednet::MMREDNET_ISA
