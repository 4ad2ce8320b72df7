// A product of small matrices, whose operands lie in the caches.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "isa.h"
#include "simd.h"

namespace mmrednet::MMREDNET_ISA {

// N rows of the result and V vectors of its columns
template <typename A, int N, int V>
inline void multiply_block(const A* left, int64_t left_pitch, const A* right, int64_t pitch,
                           int64_t count, const A* bias, bool add, A* result) {
  typedef typename Lanes<A, 16>::Vector Vector;
  Vector s[N][V];
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < V; ++v)
      s[n][v] =
          add ? load_lanes<A, 16>(result + n * pitch + 16 * v) : Vector{} + (bias ? bias[n] : 0);
  for (int64_t r = 0; r < count; ++r) {
    Vector seen[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) seen[v] = load_lanes<A, 16>(right + r * pitch + 16 * v);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const A factor = left[n * left_pitch + r];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) s[n][v] += factor * seen[v];
    }
  }
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < V; ++v) std::memcpy(result + n * pitch + 16 * v, &s[n][v], sizeof(Vector));
}

template <typename A, int N>
inline void multiply_rows(const A* left, int64_t left_pitch, const A* right, int64_t pitch,
                          int64_t count, int64_t width, const A* bias, bool add, A* result) {
  int64_t x = 0;
  for (; x + 48 <= width; x += 48)
    multiply_block<A, N, 3>(left, left_pitch, right + x, pitch, count, bias, add, result + x);
  for (; x < width; x += 16)
    multiply_block<A, N, 1>(left, left_pitch, right + x, pitch, count, bias, add, result + x);
}

// result (rows x width) = left (rows x count) * right (count x width) + bias, one for each row, or
// null; or, where `add` says so, + what the result is already. `pitch` is that of right and result,
// `width` a multiple of sixteen.
template <typename A>
void multiply(const A* left, int64_t left_pitch, const A* right, int64_t pitch, int64_t rows,
              int64_t count, int64_t width, const A* bias, bool add, A* result) {
  int64_t step;
  for (int64_t k = 0; k < rows; k += step) {
    const auto run = [&](auto some) {
      step = some;
      multiply_rows<A, some>(left + k * left_pitch, left_pitch, right, pitch, count, width,
                             bias ? bias + k : bias, add, result + k * pitch);
    };
    // taps are often a multiple of seven, features one of eight
    const int64_t rest = rows - k;
    if (rest % 7 == 0)
      run(std::integral_constant<int, 7>());
    else if (rest >= 8)
      run(std::integral_constant<int, 8>());
    else if (rest >= 3)
      run(std::integral_constant<int, 3>());
    else
      run(std::integral_constant<int, 1>());
  }
}

}  // namespace mmrednet::MMREDNET_ISA
