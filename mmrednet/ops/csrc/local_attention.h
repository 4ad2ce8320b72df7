// Local attention row by row: the logits of one row of outputs fit the second-level cache, and
// never leave it.

#pragma once

#include <cstdint>
#include <cstring>

#include "correlate.h"
#include "isa.h"
#include "packed_rows.h"
#include "params.h"
#include "simd.h"
#include "small_gemm.h"
#include "transpose.h"
#include "window.h"

namespace mmrednet::MMREDNET_ISA {

// e^x for x <= 0, to the last digit but one, by way of 2^n e^r with |r| <= log(2) / 2 and a
// polynomial for e^r
inline Lanes<float, 16>::Vector exp_lanes(Lanes<float, 16>::Vector x) {
  typedef Lanes<float, 16>::Vector V;
  typedef Lanes<int32_t, 16>::Vector I;
  // adding and subtracting 1.5 * 2^23 rounds to an integer, which the sum has in its lower bits
  const float shift = 12582912.f;
  V sum = x * 1.44269504f + shift;
  I exponent;
  std::memcpy(&exponent, &sum, sizeof(sum));
  const V n = sum - shift;
  const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  V y =
      ((((1.9875691500e-4f * r + 1.3981999507e-3f) * r + 8.3334519073e-3f) * r + 4.1665795894e-2f) *
           r +
       1.6666665459e-1f) *
          r +
      5.0000001201e-1f;
  y = y * r * r + r + 1.f;
  exponent = (exponent + (127 - 0x4b400000)) << 23;
  V power;
  std::memcpy(&power, &exponent, sizeof(power));
  // below, the power is no normal number any more
  return x < -87.f ? V{} : y * power;
}

inline Lanes<double, 16>::Vector exp_lanes(Lanes<double, 16>::Vector x) {
  for (int n = 0; n < 16; ++n) x[n] = __builtin_exp(x[n]);
  return x;
}

// what is added to the logits of a row: a line for each row and each column of the window, a number
// for each tap
template <typename A>
struct Added {
  const A *rows, *columns, *bias;
};

// Logits to weights, and, if they are wanted, the logarithms of their sums. Lines of rows outside
// the map are left alone.
template <typename A>
void soften(const Problem& p, const Added<A>& added, A* logits, int64_t pitch, int64_t y,
            A* logsumexp) {
  typedef typename Lanes<A, 16>::Vector V;
  const Geometry& g = p.geometry;
  const V lowest = V{} - static_cast<A>(__builtin_inf());
  int64_t first, last;
  inside(y * g.stride_h - g.padding_h, g.dilation_h, p.height, g.kernel_h, &first, &last);
  first *= g.kernel_w, last *= g.kernel_w;
  for (int64_t x = 0; x < p.out_width; x += 16) {
    V top = lowest, sum = {};
    for (int64_t k = first; k < last; ++k) {
      A* place = logits + k * pitch + x;
      V logit =
          load_lanes<A, 16>(place) + load_lanes<A, 16>(added.columns + k % g.kernel_w * pitch + x);
      if (added.rows) logit += load_lanes<A, 16>(added.rows + k / g.kernel_w * pitch + x);
      if (added.bias) logit += added.bias[k];
      std::memcpy(place, &logit, sizeof(V));
      top = logit > top ? logit : top;
    }
    // without a neighbour on the map there is no weight
    const V base = top == lowest ? V{} : top;
    for (int64_t k = first; k < last; ++k) {
      A* place = logits + k * pitch + x;
      const V weight = exp_lanes(load_lanes<A, 16>(place) - base);
      std::memcpy(place, &weight, sizeof(V));
      sum += weight;
    }
    const V factor = sum == 0 ? V{} : 1 / sum;
    for (int64_t k = first; k < last; ++k) {
      A* place = logits + k * pitch + x;
      const V weight = load_lanes<A, 16>(place) * factor;
      std::memcpy(place, &weight, sizeof(V));
    }
    for (int64_t i = 0; logsumexp && i < 16 && x + i < p.out_width; ++i)
      logsumexp[x + i] = base[i] + __builtin_log(sum[i]);
  }
}

// minus infinity for the columns of each tap that lie outside the map, and zero for the others
template <typename A>
void mask_columns(const Problem& p, int64_t pitch, A* columns) {
  const Geometry& g = p.geometry;
  for (int64_t t = 0; t < g.kernel_w; ++t) {
    int64_t first, last;
    valid(t, g.stride_w, g.dilation_w, g.padding_w, p.width, p.out_width, &first, &last);
    for (int64_t x = 0; x < pitch; ++x)
      columns[t * pitch + x] =
          x < p.out_width && (x < first || x >= last) ? -static_cast<A>(__builtin_inf()) : 0;
  }
}

// the gradients of the logits of a row, in place of those of its weights: weight (grad - sum of
// weight grad)
template <typename A>
void differentiate(int64_t taps, const A* weight, A* grad, int64_t pitch) {
  typedef typename Lanes<A, 16>::Vector V;
  for (int64_t x = 0; x < pitch; x += 16) {
    V sum = {};
    for (int64_t k = 0; k < taps; ++k)
      sum += load_lanes<A, 16>(weight + k * pitch + x) * load_lanes<A, 16>(grad + k * pitch + x);
    for (int64_t k = 0; k < taps; ++k) {
      A* place = grad + k * pitch + x;
      const V logit = load_lanes<A, 16>(weight + k * pitch + x) * (load_lanes<A, 16>(place) - sum);
      std::memcpy(place, &logit, sizeof(V));
    }
  }
}

// lines [begin, end) of the problem, a line being one row of one head of one image
template <typename T, typename A>
void run_attention(const Attention& q, const AttentionData& data, void* memory, int64_t begin,
                   int64_t end) {
  const Problem &k = q.keys, &v = q.values;
  const Geometry& g = k.geometry;
  const int64_t taps = g.kernel_h * g.kernel_w, pitch = padded(k.out_width), half = k.channels / 2;
  const int64_t key_bytes = rows_bytes(k, sizeof(A)), value_bytes = rows_bytes(v, sizeof(A));
  char *held_keys = static_cast<char*>(memory), *held_values = held_keys + k.held * key_bytes;
  Rows<T, A>::forget(held_keys, k.held, key_bytes);
  Rows<T, A>::forget(held_values, k.held, value_bytes);
  A* queries = reinterpret_cast<A*>(held_values + k.held * value_bytes);
  A* logits = queries + k.channels * pitch;
  A *by_row = logits + taps * pitch, *by_column = by_row + g.kernel_h * pitch,
    *mask = by_column + g.kernel_w * pitch;
  A *grads = mask + g.kernel_w * pitch, *grad_logits = grads + v.channels * pitch;
  mask_columns(k, pitch, mask);
  const A *rows = static_cast<const A*>(data.rows), *columns = static_cast<const A*>(data.columns);
  const A* bias = static_cast<const A*>(data.bias);
  for (int64_t line = begin; line < end; ++line) {
    const Place place = place_of(line, k.lines, k.groups, k.held > 1);
    const int64_t image = place.image, head = place.group, y = place.row,
                  piece = k.held > 1 ? head : 0;
    Rows<T, A> keys(k, k.second, held_keys + piece * key_bytes,
                    static_cast<const T*>(data.key) + image * k.second.b + head * k.second.g);
    Rows<T, A> values(v, v.first, held_values + piece * value_bytes,
                      static_cast<const T*>(data.value) + image * v.first.b + head * v.first.g);
    const T* query =
        static_cast<const T*>(data.query) + image * k.first.b + head * k.first.g + y * k.first.h;
    pack_lines(queries, pitch, query, k.first.c, k.first.w, k.channels, k.out_width);
    clear_lines(queries, pitch, k.channels, k.out_width);
    correlate_row(k, keys, queries, pitch, logits, y);
    Added<A> added = {nullptr, mask, bias ? bias + head * taps : nullptr};
    if (rows) {
      multiply<A>(rows + head * g.kernel_h * half, half, queries, pitch, g.kernel_h, half, pitch,
                  nullptr, false, by_row);
      multiply<A>(columns + head * g.kernel_w * half, half, queries + half * pitch, pitch,
                  g.kernel_w, half, pitch, nullptr, false, by_column);
      for (int64_t i = 0; i < g.kernel_w * pitch; ++i) by_column[i] += mask[i];
      added.rows = by_row, added.columns = by_column;
    }
    if (!q.backward) {
      A* logsumexp =
          static_cast<A*>(data.logsumexp) + ((image * k.groups + head) * k.lines + y) * k.out_width;
      soften(k, added, logits, pitch, y, logsumexp);
      hold_seen(v, values, y);
      T* result = static_cast<T*>(data.result) + image * v.result.b + head * v.result.g;
      aggregate_row<T, A, false>(v, values, logits, pitch, result, y);
      continue;
    }
    soften<A>(k, added, logits, pitch, y, nullptr);
    const T* grad =
        static_cast<const T*>(data.grad) + image * q.grad.b + head * q.grad.g + y * q.grad.h;
    pack_lines(grads, pitch, grad, q.grad.c, q.grad.w, v.channels, k.out_width);
    clear_lines(grads, pitch, v.channels, k.out_width);
    correlate_row(v, values, grads, pitch, grad_logits, y);
    differentiate(taps, logits, grad_logits, pitch);
    const int64_t at = image * q.taps.b + head * q.taps.g + y * q.taps.h;
    unpack_lines(static_cast<A*>(data.weight) + at, q.taps.c, q.taps.w, logits, pitch, taps,
                 k.out_width);
    unpack_lines(static_cast<A*>(data.grad_logits) + at, q.taps.c, q.taps.w, grad_logits, pitch,
                 taps, k.out_width);
  }
}

}  // namespace mmrednet::MMREDNET_ISA
