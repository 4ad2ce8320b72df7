// Involution that generates its kernels where it uses them: a tile of outputs of one group at a
// time, whose kernels fit the first-level cache.

#pragma once

#include <cstdint>

#include "channels_last.h"
#include "isa.h"
#include "packed_rows.h"
#include "params.h"
#include "simd.h"
#include "small_gemm.h"
#include "transpose.h"

namespace mmrednet::MMREDNET_ISA {

// the hidden features of outputs [first, first + count), numbered row by row: one line for each
// feature, zeros behind them
template <typename T, typename A>
void pack_hidden(const Involution& q, const T* from, int64_t first, int64_t count, int64_t pitch,
                 A* to) {
  const int64_t width = q.local.out_width;
  for (int64_t i = 0; i < count;) {
    const int64_t y = (first + i) / width, x = (first + i) % width;
    const int64_t length = count - i < width - x ? count - i : width - x;
    pack_lines(to + i, pitch, from + y * q.seen.h + x * q.seen.w, q.seen.c, q.seen.w, q.hidden,
               length);
    i += length;
  }
  clear_lines(to, pitch, q.hidden, count);
}

// numbers in the type in which sums are taken, copied to `to` where that is another one
template <typename T, typename A>
inline const A* widened(const T* from, int64_t count, A* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = load<A>(from[i]);
  return to;
}
template <typename A>
inline const A* widened(const A* from, int64_t, A*) {
  return from;
}

// The kernels of one tile of one group after another, in memory of the thread's own. What
// neighbouring items of work share is read once: the hidden features of a tile, or the weight of a
// group.
template <typename T, typename A>
struct Generator {
  const Involution& q;
  const InvolutionData& data;
  A *hidden, *kernels, *spare;
  const A *weight = nullptr, *bias = nullptr;
  int64_t taps, held_tile = -1, held_group = -1;
  // of the tile: its first output, how many there are, and the length of a line
  int64_t first = 0, count = 0, pitch = 0;

  Generator(const Involution& involution, const InvolutionData& given, void* memory)
      : q(involution), data(given) {
    taps = q.local.geometry.kernel_h * q.local.geometry.kernel_w;
    hidden = static_cast<A*>(memory);
    kernels = hidden + q.hidden * q.pitch;
    spare = kernels + taps * q.pitch;
  }

  // `kernels` are then those of the tile, a line for each tap
  void make(int64_t image, int64_t tile, int64_t group) {
    if (held_tile != image * q.tiles + tile) {
      held_tile = image * q.tiles + tile;
      const int64_t outputs = q.local.out_height * q.local.out_width;
      first = tile * q.size, count = outputs - first < q.size ? outputs - first : q.size,
      pitch = padded(count);
      pack_hidden<T, A>(q, static_cast<const T*>(data.hidden) + image * q.seen.b, first, count,
                        pitch, hidden);
    }
    if (held_group != group) {
      held_group = group;
      weight = widened(static_cast<const T*>(data.weight) + group * taps * q.hidden,
                       taps * q.hidden, spare);
      bias =
          widened(static_cast<const T*>(data.bias) + group * taps, taps, spare + taps * q.hidden);
    }
    multiply<A>(weight, q.hidden, hidden, pitch, taps, q.hidden, pitch, bias, false, kernels);
  }
};

// scale and shift the results of some outputs of one row, while they are at hand
template <typename T, typename A>
void finish(const Problem& p, const InvolutionData& data, int64_t group, T* result, int64_t count) {
  if (data.scale == nullptr) return;
  const A* scale = static_cast<const A*>(data.scale) + group * p.channels;
  const A* shift = static_cast<const A*>(data.shift) + group * p.channels;
  const int64_t c = p.result.c, w = p.result.w;
  const auto finished = [&](T given, int64_t d) {
    const A number = load<A>(given) * scale[d] + shift[d];
    return store<T>(data.relu && number < 0 ? A{0} : number);
  };
  if (c == 1)
    for (int64_t i = 0; i < count; ++i)
      for (int64_t d = 0; d < p.channels; ++d) result[i * w + d] = finished(result[i * w + d], d);
  else
    for (int64_t d = 0; d < p.channels; ++d)
      for (int64_t i = 0; i < count; ++i)
        result[d * c + i * w] = finished(result[d * c + i * w], d);
}

// which image, tile and group an item of work is: the groups of a tile share its hidden features,
// rows of a group those of the map
struct Item {
  int64_t image, tile, group;
};

inline Item item_of(const Involution& q, int64_t item) {
  const int64_t groups = q.local.groups, rest = item % (q.tiles * groups);
  return {item / q.tiles / groups, q.pixels ? rest / groups : rest % q.tiles,
          q.pixels ? rest % groups : rest / q.tiles};
}

// tiles [begin, end) of the problem, a tile being some neighbouring outputs of one group of one
// image
template <typename T, typename A>
void run_involution(const Involution& q, const InvolutionData& data, void* memory, int64_t begin,
                    int64_t end) {
  const Problem& p = q.local;
  char* free = static_cast<char*>(memory);
  if (!q.pixels) Rows<T, A>::forget(free, 1, 0);
  Generator<T, A> made(q, data, free + (q.pixels ? 0 : rows_bytes(p, sizeof(A))));
  for (int64_t i = begin; i < end; ++i) {
    const Item item = item_of(q, i);
    made.make(item.image, item.tile, item.group);
    const T* value =
        static_cast<const T*>(data.value) + item.image * p.first.b + item.group * p.first.g;
    T* result = static_cast<T*>(data.result) + item.image * p.result.b + item.group * p.result.g;
    if (!q.pixels) {
      Rows<T, A> rows(p, p.first, free, value);
      hold_seen(p, rows, item.tile);
      aggregate_row<T, A, false>(p, rows, made.kernels, made.pitch, result, item.tile);
      finish<T, A>(p, data, item.group, result + item.tile * p.result.h, made.count);
      continue;
    }
    for (int64_t x = made.first; x < made.first + made.count;) {
      const int64_t row = x / p.out_width, column = x % p.out_width,
                    left = made.first + made.count - x;
      const int64_t length = left < p.out_width - column ? left : p.out_width - column;
      const Taps<A> where = {made.kernels + x - made.first, p.geometry.kernel_w * made.pitch,
                             made.pitch, 1};
      T* to = result + row * p.result.h + column * p.result.w;
      aggregate_span<T, A>(p, value, where, to, row, column, column + length);
      finish<T, A>(p, data, item.group, to, length);
      x += length;
    }
  }
}

}  // namespace mmrednet::MMREDNET_ISA
