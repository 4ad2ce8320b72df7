// The backward pass of involution: kernels made again and stored for the gradient of the map, and
// the gradients of what they were made from.

#pragma once

#include <cstdint>

#include "correlate.h"
#include "involution_forward.h"
#include "isa.h"
#include "packed_rows.h"
#include "params.h"
#include "simd.h"
#include "small_gemm.h"
#include "transpose.h"
#include "window.h"

namespace mmrednet::MMREDNET_ISA {

// Kernels of tiles [begin, end), a tile being some outputs of one group of one image; and once for
// each tile its hidden features, those of an output side by side.
template <typename T, typename A>
void store_kernels(const Involution& q, const InvolutionData& data, void* features, void* memory,
                   int64_t begin, int64_t end) {
  const Problem& p = q.local;
  const int64_t outputs = p.out_height * p.out_width, pitch = padded(q.hidden);
  Generator<T, A> made(q, data, memory);
  for (int64_t i = begin; i < end; ++i) {
    const Item item = item_of(q, i);
    made.make(item.image, item.tile, item.group);
    T* result = static_cast<T*>(data.result) +
                (item.image * p.groups + item.group) * made.taps * outputs + made.first;
    unpack_lines(result, outputs, 1, made.kernels, made.pitch, made.taps, made.count);
    if (item.group > 0) continue;
    A* beside = static_cast<A*>(features) + (item.image * outputs + made.first) * pitch;
    unpack_lines(beside, 1, pitch, made.hidden, made.pitch, q.hidden, made.count);
    for (int64_t x = 0; x < made.count; ++x)
      for (int64_t r = q.hidden; r < pitch; ++r) beside[x * pitch + r] = 0;
  }
}

// add the numbers of each line
template <typename A>
void add_lines(const A* lines, int64_t pitch, int64_t rows, int64_t width, A* sums) {
  typedef typename Lanes<A, 16>::Vector V;
  for (int64_t k = 0; k < rows; ++k) {
    V sum = {};
    for (int64_t x = 0; x < width; x += 16) sum += load_lanes<A, 16>(lines + k * pitch + x);
    for (int n = 0; n < 16; ++n) sums[k] += sum[n];
  }
}

// the gradients of the kernels of a tile, rows [y, y_end) of one group of one image: a line for
// each tap, zeros behind it
template <typename T, typename A>
void correlate_rows(const Generated& q, const T* grad, Rows<T, A>& values, int64_t y, int64_t y_end,
                    A* grads, A* lines) {
  const Problem& p = q.local;
  const int64_t width = p.out_width, count = (y_end - y) * width,
                taps = p.geometry.kernel_h * p.geometry.kernel_w;
  for (int64_t i = y; i < y_end; ++i)
    pack_lines(grads + (i - y) * width, q.pitch, grad + i * p.first.h, p.first.c, p.first.w,
               p.channels, width);
  clear_lines(grads, q.pitch, p.channels, count);
  // each row is written over what the one before it has left behind its end
  for (int64_t i = y; i < y_end; ++i)
    correlate_row(p, values, grads + (i - y) * width, q.pitch, lines + (i - y) * width, i);
  clear_lines(lines, q.pitch, taps, count);
}

// What a tile of one group adds to the sums of its chunk, and to those of its block: the first
// group of a block begins them.
template <typename T, typename A>
void add_tile(const Generated& q, const GeneratedData& data, char* memory, Place place, bool begins,
              A* weight_sums, A* bias_sums, A* hidden_sums) {
  const Problem& p = q.local;
  const int64_t taps = p.geometry.kernel_h * p.geometry.kernel_w, features = padded(q.hidden);
  const int64_t y = place.row, y_end = y + q.rows < p.out_height ? y + q.rows : p.out_height;
  const int64_t count = (y_end - y) * p.out_width;
  A* grads = reinterpret_cast<A*>(memory + rows_bytes(p, sizeof(A)));
  A* lines = grads + p.channels * q.pitch;
  Rows<T, A> values(
      p, p.second, memory,
      static_cast<const T*>(data.value) + place.image * p.second.b + place.group * p.second.g);
  correlate_rows(
      q, static_cast<const T*>(data.grad) + place.image * p.first.b + place.group * p.first.g,
      values, y, y_end, grads, lines);
  const A* beside = static_cast<const A*>(data.features) +
                    (place.image * p.out_height + y) * p.out_width * features;
  multiply<A>(lines, q.pitch, beside, features, taps, count, features, nullptr, true, weight_sums);
  add_lines(lines, q.pitch, taps, padded(count), bias_sums);
  const A* weight = static_cast<const A*>(data.weight) + place.group * q.hidden * taps;
  multiply<A>(weight, taps, lines, q.pitch, q.hidden, taps, padded(count), nullptr, !begins,
              hidden_sums);
}

// Parts [begin, end) of the sums that are the gradients of weight, bias and hidden features: a part
// is a chunk of tiles times a block of groups, whatever the number of threads.
template <typename T, typename A>
void run_kernel_gradients(const Generated& q, const GeneratedData& data, void* memory,
                          int64_t begin, int64_t end) {
  const Problem& p = q.local;
  const int64_t taps = p.geometry.kernel_h * p.geometry.kernel_w, features = padded(q.hidden);
  char* held = static_cast<char*>(memory);
  Rows<T, A>::forget(held, 1, 0);
  for (int64_t part = begin; part < end; ++part) {
    const int64_t chunk = part / q.blocks, block = part % q.blocks, first = block * q.block;
    const int64_t last = first + q.block < p.groups ? first + q.block : p.groups;
    const int64_t tile_end = (chunk + 1) * q.chunk < q.all ? (chunk + 1) * q.chunk : q.all;
    for (int64_t group = first; group < last; ++group) {
      A* weight_sums =
          static_cast<A*>(data.weight_sums) + (chunk * p.groups + group) * taps * features;
      A* bias_sums = static_cast<A*>(data.bias_sums) + (chunk * p.groups + group) * taps;
      for (int64_t i = 0; i < taps * features; ++i) weight_sums[i] = 0;
      for (int64_t i = 0; i < taps; ++i) bias_sums[i] = 0;
      for (int64_t tile = chunk * q.chunk; tile < tile_end; ++tile) {
        A* hidden_sums =
            static_cast<A*>(data.hidden_sums) + (block * q.all + tile) * q.hidden * q.pitch;
        const Place place = {tile / q.tiles, group, tile % q.tiles * q.rows};
        add_tile<T, A>(q, data, held, place, group == first, weight_sums, bias_sums, hidden_sums);
      }
    }
  }
}

// the gradients of the hidden features of tiles [begin, end): the sums of all blocks, in order
template <typename T, typename A>
void store_hidden_gradients(const Generated& q, const GeneratedData& data, int64_t begin,
                            int64_t end) {
  const Problem& p = q.local;
  const int64_t size = q.hidden * q.pitch;
  for (int64_t tile = begin; tile < end; ++tile) {
    A* sums = static_cast<A*>(data.hidden_sums) + tile * size;
    for (int64_t block = 1; block < q.blocks; ++block)
      for (int64_t i = 0; i < size; ++i) sums[i] += sums[block * q.all * size + i];
    const int64_t y = tile % q.tiles * q.rows;
    T* to = static_cast<T*>(data.grad_hidden) + tile / q.tiles * q.seen.b;
    for (int64_t i = 0; i < q.rows && y + i < p.out_height; ++i)
      unpack_lines(to + (y + i) * q.seen.h, q.seen.c, q.seen.w, sums + i * p.out_width, q.pitch,
                   q.hidden, p.out_width);
  }
}

}  // namespace mmrednet::MMREDNET_ISA
