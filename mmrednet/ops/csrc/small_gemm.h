// Products of small matrices that lie in the caches.

#pragma once

#include <cstdint>
#include <type_traits>

#include "integers.h"
#include "isa.h"
#include "matrix.h"
#include "simd.h"

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

}  // namespace mmrednet::MMREDNET_ISA
