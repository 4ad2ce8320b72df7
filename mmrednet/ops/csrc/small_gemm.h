// Products of small matrices that lie in the caches.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "integers.h"
#include "isa.h"
#include "matrix.h"
#include "simd.h"
#include "simd_pairs.h"

namespace mmrednet::MMREDNET_ISA {

// A tile of the result, N rows of V vectors, which stays in registers. N * V independent sums hide
// the latency of a multiply-add; each vector of `right` is loaded once for N rows.
template <typename A, int N, int V>
inline void multiply_tile(Matrix<const A> left, Matrix<const A> right, const A* bias, bool add,
                          Matrix<A> result) {
  Simd<A> sums[N][V];
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < V; ++v)
      sums[n][v] = add ? load_simd<A>(result.data + n * result.pitch + kSimdWidth * v)
                       : Simd<A>{} + (bias ? bias[n] : 0);
  for (int64_t r = 0; r < right.rows; ++r) {
    Simd<A> row[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v)
      row[v] = load_simd<A>(right.data + r * right.pitch + kSimdWidth * v);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      const A factor = left.data[n * left.pitch + r];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[n][v] += factor * row[v];
    }
  }
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < V; ++v)
      store_simd<A>(result.data + n * result.pitch + kSimdWidth * v, sums[n][v]);
}

// N rows of the result. With three vectors, up to 24 sums and three vectors of `right` fit the 32
// registers of AVX-512.
template <typename A, int N>
inline void multiply_rows(Matrix<const A> left, Matrix<const A> right, const A* bias, bool add,
                          Matrix<A> result) {
  constexpr int64_t kWide = 3 * kSimdWidth;
  int64_t x = 0;
  for (; x + kWide <= result.columns; x += kWide)
    multiply_tile<A, N, 3>(left, right.from(0, x), bias, add, result.from(0, x));
  for (; x < result.columns; x += kSimdWidth)
    multiply_tile<A, N, 1>(left, right.from(0, x), bias, add, result.from(0, x));
}

// result = left * right + bias, or, with `add`, result += left * right. `bias` has one element for
// each row, or is null. The number of columns of the result must be a multiple of the SIMD width.
template <typename A>
void multiply(Matrix<const A> left, Matrix<const A> right, const A* bias, bool add,
              Matrix<A> result) {
  for (int64_t row = 0; row < result.rows;) {
    const auto run = [&](auto rows) {
      const A* row_bias = bias ? bias + row : nullptr;
      multiply_rows<A, rows>(left.from(row, 0), right, row_bias, add, result.from(row, 0));
      row += rows;
    };
    // 49 taps (7x7) are seven times seven rows; hidden channels are often a multiple of eight
    const int64_t remaining = result.rows - row;
    if (remaining % 7 == 0)
      run(std::integral_constant<int, 7>());
    else if (remaining >= 8)
      run(std::integral_constant<int, 8>());
    else if (remaining >= 3)
      run(std::integral_constant<int, 3>());
    else
      run(std::integral_constant<int, 1>());
  }
}

// Sums of products of pairs, in a tile of N rows of V vectors. `left` has N rows, of numbers;
// `right` has a row for each pair of them.
template <typename T, typename A, int N, int V>
inline void add_pair_products(const T* left, int64_t pitch, Matrix<const A> right,
                              Simd<A> (&sums)[N][V]) {
  for (int64_t r = 0; r < right.rows; ++r) {
    Simd<A> row[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v)
      row[v] = load_simd<A>(right.data + r * right.pitch + kSimdWidth * v);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      uint32_t pair;
      std::memcpy(&pair, left + n * pitch + 2 * r, sizeof(pair));
      const Simd<A> factor = broadcast_pair(pair);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[n][v] = dot_pairs<A>(sums[n][v], factor, row[v]);
    }
  }
}

// result = left * right for `rows` rows of numbers. `right` has pairs of its rows. The number of
// columns of the result must be a multiple of the SIMD width.
template <typename T, typename A>
void multiply_pairs(const T* left, int64_t pitch, int64_t rows, Matrix<const A> right,
                    Matrix<A> result) {
  for (int64_t row = 0; row < rows;) {
    const auto run = [&](auto count) {
      for (int64_t x = 0; x < result.columns; x += kSimdWidth) {
        Simd<A> sums[count][1] = {};
        add_pair_products<T, A, count, 1>(left + row * pitch, pitch, right.from(0, x), sums);
        for (int n = 0; n < count; ++n)
          store_simd<A>(result.data + (row + n) * result.pitch + x, sums[n][0]);
      }
      row += count;
    };
    // seven rows of the common 7x7 window
    if (rows - row >= 7)
      run(std::integral_constant<int, 7>());
    else if (rows - row >= 3)
      run(std::integral_constant<int, 3>());
    else
      run(std::integral_constant<int, 1>());
  }
}

// N rows of left * right + bias, rounded and stored as pairs of neighbouring rows.
template <typename T, typename A, int N, int V>
inline void multiply_to_pairs_tile(const T* left, int64_t pitch, Matrix<const A> right,
                                   const A* bias, Matrix<A> result) {
  Simd<A> sums[N][V];
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < V; ++v) sums[n][v] = Simd<A>{} + bias[n];
  add_pair_products<T, A, N, V>(left, pitch, right, sums);
#pragma GCC unroll 8
  for (int n = 0; n < N; n += 2)
    for (int v = 0; v < V; ++v) {
      const Simd<A> second = n + 1 < N ? sums[n + 1][v] : Simd<A>{};
      store_simd<A>(result.data + n / 2 * result.pitch + kSimdWidth * v,
                    make_pairs<A>(sums[n][v], second));
    }
}

// left * right + bias for `rows` rows of numbers, stored as pairs of neighbouring rows; the last of
// an odd number ends with zero. `right` has pairs of its rows as well. The number of columns of the
// result must be a multiple of the SIMD width.
template <typename T, typename A>
void multiply_to_pairs(const T* left, int64_t pitch, int64_t rows, Matrix<const A> right,
                       const A* bias, Matrix<A> result) {
  constexpr int64_t kWide = 3 * kSimdWidth;
  for (int64_t row = 0; row < rows;) {
    const auto run = [&](auto count) {
      const T* first = left + row * pitch;
      const Matrix<A> target = result.from(row / 2, 0);
      int64_t x = 0;
      for (; x + kWide <= result.columns; x += kWide)
        multiply_to_pairs_tile<T, A, count, 3>(first, pitch, right.from(0, x), bias + row,
                                               target.from(0, x));
      for (; x < result.columns; x += kSimdWidth)
        multiply_to_pairs_tile<T, A, count, 1>(first, pitch, right.from(0, x), bias + row,
                                               target.from(0, x));
      row += count;
    };
    // rows of 7x7, 5x5 and 3x3 windows at once, and an even number of any others
    const int64_t remaining = rows - row;
    if (remaining == 7)
      run(std::integral_constant<int, 7>());
    else if (remaining == 5)
      run(std::integral_constant<int, 5>());
    else if (remaining >= 4)
      run(std::integral_constant<int, 4>());
    else if (remaining == 3)
      run(std::integral_constant<int, 3>());
    else if (remaining == 2)
      run(std::integral_constant<int, 2>());
    else
      run(std::integral_constant<int, 1>());
  }
}

}  // namespace mmrednet::MMREDNET_ISA
