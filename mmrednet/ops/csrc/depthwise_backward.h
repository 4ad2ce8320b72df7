// The gradients of weights and bias of depth-wise convolution, and of GELU behind it.
//
// The gradient of the map is a depth-wise convolution too, with the taps in reverse order.

#pragma once

#include <cstdint>

#include "depthwise.h"
#include "depthwise_params.h"
#include "integers.h"
#include "isa.h"
#include "simd.h"
#include "simd_gelu.h"
#include "window.h"
#include "workspace.h"

namespace mmrednet::MMREDNET_ISA {

// Taps whose sums stay in registers together.
constexpr int kGroupedTaps = 8;

// Adds the products of a row of gradients with the positions that kTaps taps see.
template <typename A, int kTaps>
inline void add_tap_products(const A* grad, const A* const* sources, A* sums, int64_t positions) {
  Simd<A> local[kTaps];
#pragma GCC unroll 8
  for (int k = 0; k < kTaps; ++k) local[k] = Simd<A>{};
  for (int64_t x = 0; x < positions * kSimdWidth; x += kSimdWidth) {
    const Simd<A> factor = load_simd<A>(grad + x);
#pragma GCC unroll 8
    for (int k = 0; k < kTaps; ++k) local[k] += factor * load_simd<A>(sources[k] + x);
  }
#pragma GCC unroll 8
  for (int k = 0; k < kTaps; ++k)
    store_simd<A>(sums + k * kSimdWidth, load_simd<A>(sums + k * kSimdWidth) + local[k]);
}

template <typename A>
inline void add_tap_products(const A* grad, const A* const* sources, A* sums, int64_t positions,
                             int64_t taps) {
  switch (taps) {
    case 1:
      return add_tap_products<A, 1>(grad, sources, sums, positions);
    case 2:
      return add_tap_products<A, 2>(grad, sources, sums, positions);
    case 3:
      return add_tap_products<A, 3>(grad, sources, sums, positions);
    case 4:
      return add_tap_products<A, 4>(grad, sources, sums, positions);
    case 5:
      return add_tap_products<A, 5>(grad, sources, sums, positions);
    case 6:
      return add_tap_products<A, 6>(grad, sources, sums, positions);
    case 7:
      return add_tap_products<A, 7>(grad, sources, sums, positions);
    default:
      return add_tap_products<A, kGroupedTaps>(grad, sources, sums, positions);
  }
}

// Adds what a row of gradients, packed, gives for all weights of a block.
template <typename A>
inline void add_weight_gradients(const DepthwiseParams& p, const TapRows<A>& rows, const A* grad,
                                 A* sums) {
  const Window& window = p.window;
  const int64_t end = rows.taps.end * window.kernel_w;
  // the next tap: its slot and its column
  int64_t slot = rows.slot, t = 0;
  for (int64_t tap = rows.taps.begin * window.kernel_w; tap < end;) {
    // groups of about the same size, since few sums cannot hide the latency of a multiply-add
    const int64_t taps = ceil_div(end - tap, ceil_div(end - tap, kGroupedTaps));
    const A* sources[kGroupedTaps];
    for (int64_t k = 0; k < taps; ++k) {
      sources[k] = rows.row(slot) + t * window.dilation_w * kSimdWidth;
      if (++t < window.kernel_w) continue;
      t = 0;
      slot = rows.next(slot);
    }
    add_tap_products<A>(grad, sources, sums + tap * kSimdWidth, p.out_width, taps);
    tap += taps;
  }
}

// Adds a row of gradients to the sum for the bias.
template <typename A>
inline void add_bias_gradient(const A* grad, A* sums, int64_t positions) {
  Simd<A> even = {}, odd = {};
  int64_t x = 0;
  for (; x + 2 <= positions; x += 2) {
    even += load_simd<A>(grad + x * kSimdWidth);
    odd += load_simd<A>(grad + (x + 1) * kSimdWidth);
  }
  if (x < positions) even += load_simd<A>(grad + x * kSimdWidth);
  store_simd<A>(sums, load_simd<A>(sums) + (even + odd));
}

// Multiplies a row of gradients, packed, by the derivative of GELU. The convolution in front of
// it is computed again.
template <typename A>
inline void multiply_by_gelu_derivative(const DepthwiseParams& p, const TapRows<A>& rows,
                                        const A* weight, const A* bias, A* grad) {
  Simd<A> sums[kDepthwiseOutputs];
  for (int64_t x = 0; x < p.out_width; x += kDepthwiseOutputs) {
    depthwise_sums<A>(p.window, rows, weight, load_simd<A>(bias), x, sums);
    for (int i = 0; i < kDepthwiseOutputs; ++i) {
      A* target = grad + (x + i) * kSimdWidth;
      store_simd<A>(target, load_simd<A>(target) * gelu_derivative<A>(sums[i]));
    }
  }
}

// Items [begin, end) of the backward pass. Behind the packed rows of the map, `memory` has one row
// of gradients.
template <typename T, typename A>
void run_depthwise_gradients(const DepthwiseParams& p, const DepthwiseBackwardPointers& pointers,
                             void* memory, int64_t begin, int64_t end) {
  const int64_t taps = num_taps(p.window);
  A* map_rows = static_cast<A*>(memory);
  A* grad_row = map_rows + p.chunk_blocks * p.slots * p.pitch * kSimdWidth;
  const int64_t row_length = ceil_div(p.out_width, kDepthwiseOutputs) * kDepthwiseOutputs;
  // what lies behind the last output is computed with, and not used
  for (int64_t i = 0; i < row_length * kSimdWidth; ++i) grad_row[i] = 0;
  for (int64_t index = begin; index < end; ++index) {
    const DepthwiseItem item = depthwise_item(p, index);
    const int64_t part = (item.image * p.bands + item.band) * p.blocks + item.first_block;
    A* sums = static_cast<A*>(pointers.sums) + part * (taps + 1) * kSimdWidth;
    for (int64_t i = 0; i < item.blocks * (taps + 1) * kSimdWidth; ++i) sums[i] = 0;
    DepthwiseRows<T, A> rows(p, item, static_cast<const T*>(pointers.forward.map), map_rows);
    for (int64_t y = item.first_row; y < item.end_row; ++y) {
      rows.advance(y);
      for (int64_t i = 0; i < item.blocks; ++i) {
        const int64_t block = item.first_block + i;
        const auto source = block_row<const T>(p, p.outputs, static_cast<const T*>(pointers.grad),
                                               item.image, block, y);
        const TapRows<A> tap_rows(p, rows, i, y);
        pack_positions<T, A>(grad_row, source, p.out_width);
        if (p.gelu) {
          const A* weight = static_cast<const A*>(pointers.forward.weight);
          const A* bias = static_cast<const A*>(pointers.forward.bias);
          multiply_by_gelu_derivative<A>(p, tap_rows, weight + block * taps * kSimdWidth,
                                         bias + block * kSimdWidth, grad_row);
          const auto target = block_row<T>(p, p.outputs, static_cast<T*>(pointers.grad_convolution),
                                           item.image, block, y);
          unpack_positions<T, A>(target, grad_row, p.out_width);
        }
        A* block_sums = sums + i * (taps + 1) * kSimdWidth;
        add_weight_gradients<A>(p, tap_rows, grad_row, block_sums);
        add_bias_gradient<A>(grad_row, block_sums + taps * kSimdWidth, p.out_width);
      }
    }
  }
}

}  // namespace mmrednet::MMREDNET_ISA
