// Products of pairs of positions (i, m) with vectors of lines and with tables of distances i - m.
//
// A block of positions and channels stays in registers. An element of a table is a scalar for all
// lines.

#pragma once

#include <cstdint>
#include <type_traits>

#include "axial_params.h"
#include "integers.h"
#include "isa.h"
#include "simd.h"

namespace mmrednet::MMREDNET_ISA {

// Positions and channels of a block: 16 sums fit the 32 registers of AVX-512, and four of two
// registers each fit the 16 registers of other instruction sets.
template <typename A>
constexpr int kPairBlock = 2;
#ifdef MMREDNET_SHUFFLES
template <>
constexpr int kPairBlock<float> = 4;
#endif

// Vectors of lines: element (i, c) is the vector at data[(i * pitch + c * step) * kSimdWidth].
template <typename A>
struct Vectors {
  using Element = std::remove_const_t<A>;
  A* data;
  int64_t pitch, step;

  A* at(int64_t i, int64_t c) const { return data + (i * pitch + c * step) * kSimdWidth; }
  Vectors from(int64_t i, int64_t c) const { return {at(i, c), pitch, step}; }
  Simd<Element> load(int64_t i, int64_t c) const { return load_simd<Element>(at(i, c)); }
  void store(int64_t i, int64_t c, Simd<Element> value) const { store_simd<A>(at(i, c), value); }
  operator Vectors<const A>() const { return {data, pitch, step}; }
};

// A table, with its first element at the distance zero of a block: element (w, c) is data[w * pitch
// + c].
template <typename A>
struct Distances {
  const A* data;
  int64_t pitch;

  Distances from(int64_t w, int64_t c) const { return {data + w * pitch + c, pitch}; }
  A at(int64_t w, int64_t c) const { return data[w * pitch + c]; }
};

// What a pair sums over its channels c, with the distance w = i - m:
//   kContent   first[i, c] * second[m, c]
//   kFirst     by_first[i, c] * first_table[w, c]
//   kSecond    second[m, c] * second_table[w, c]
enum PairTerms { kContent = 1, kFirst = 2, kSecond = 4 };

// A block of sums over channels, stored at result (i, m).
template <typename A, int kTerms>
inline void pair_block(Vectors<const A> first, Vectors<const A> by_first, Vectors<const A> second,
                       Distances<A> first_table, Distances<A> second_table, int64_t channels,
                       Vectors<A> result) {
  constexpr int B = kPairBlock<A>;
  Simd<A> sums[B][B] = {};
  for (int64_t c = 0; c < channels; ++c) {
    Simd<A> seconds[B];
#pragma GCC unroll 4
    for (int m = 0; m < B; ++m) seconds[m] = second.load(m, c);
#pragma GCC unroll 4
    for (int i = 0; i < B; ++i) {
      Simd<A> content = {}, position = {};
      if (kTerms & kContent) content = first.load(i, c);
      if (kTerms & kFirst) position = by_first.load(i, c);
#pragma GCC unroll 4
      for (int m = 0; m < B; ++m) {
        // (first + table) * second is one multiplication less than two terms
        Simd<A> factor = content;
        if (kTerms & kSecond) factor = content + second_table.at(i - m, c);
        if (kTerms & (kContent | kSecond)) sums[i][m] += factor * seconds[m];
        if (kTerms & kFirst) sums[i][m] += position * first_table.at(i - m, c);
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < B; ++i)
#pragma GCC unroll 4
    for (int m = 0; m < B; ++m) result.store(i, m, sums[i][m]);
}

// Runs a function over blocks of channels: kPairBlock at a time, then one at a time.
template <typename A, typename Function>
inline void over_channels(int64_t channels, const Function& function) {
  constexpr int B = kPairBlock<A>;
  int64_t c = 0;
  for (; c + B <= channels; c += B) function(c, std::integral_constant<int, B>());
  if constexpr (B > 2)
    for (; c + 2 <= channels; c += 2) function(c, std::integral_constant<int, 2>());
  for (; c < channels; ++c) function(c, std::integral_constant<int, 1>());
}

// N channels of the sums over keys, for a block of rows:
//   result[i, c] = result[i, c] * factor[i] + sum over m of pair[i, m] * (value[m, c] + table[w,
//   c])
// with either or both summands, and a factor of 1 where `factor` is null.
template <typename A, int kTerms, int N>
inline void sum_over_keys_block(Vectors<const A> pairs, Vectors<const A> values, Distances<A> table,
                                int64_t keys, const A* factor, Vectors<A> result) {
  constexpr int B = kPairBlock<A>;
  Simd<A> sums[B][N];
#pragma GCC unroll 4
  for (int i = 0; i < B; ++i)
#pragma GCC unroll 4
    for (int c = 0; c < N; ++c) {
      sums[i][c] = result.load(i, c);
      if (factor) sums[i][c] *= load_simd<A>(factor + i * kSimdWidth);
    }
  for (int64_t m = 0; m < keys; ++m) {
    Simd<A> value[N];
#pragma GCC unroll 4
    for (int c = 0; c < N; ++c) value[c] = (kTerms & kContent) ? values.load(m, c) : Simd<A>{};
#pragma GCC unroll 4
    for (int i = 0; i < B; ++i) {
      const Simd<A> pair = pairs.load(i, m);
#pragma GCC unroll 4
      for (int c = 0; c < N; ++c) {
        if (kTerms == kContent)
          sums[i][c] += pair * value[c];
        else if (kTerms == kFirst)
          sums[i][c] += pair * table.at(i - m, c);
        else
          sums[i][c] += pair * (value[c] + table.at(i - m, c));
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < B; ++i)
#pragma GCC unroll 4
    for (int c = 0; c < N; ++c) result.store(i, c, sums[i][c]);
}

// The sums over keys of some rows and all channels. `table` is that of the first row and key.
template <typename A, int kTerms>
inline void sum_over_keys(Vectors<const A> pairs, Vectors<const A> values, Distances<A> table,
                          int64_t rows, int64_t keys, int64_t channels, const A* factor,
                          Vectors<A> result) {
  constexpr int B = kPairBlock<A>;
  for (int64_t i = 0; i < rows; i += B)
    over_channels<A>(channels, [&](int64_t c, auto size) {
      sum_over_keys_block<A, kTerms, size>(pairs.from(i, 0), values.from(0, c), table.from(i, c),
                                           keys, factor ? factor + i * kSimdWidth : nullptr,
                                           result.from(i, c));
    });
}

// N channels of the sums over queries, for a block of keys:
//   result[m, c] += sum over i of pair[i, m] * (value[i, c] + table[w, c])
template <typename A, int kTerms, int N>
inline void sum_over_queries_block(Vectors<const A> pairs, Vectors<const A> values,
                                   Distances<A> table, int64_t rows, Vectors<A> result) {
  constexpr int B = kPairBlock<A>;
  Simd<A> sums[B][N];
#pragma GCC unroll 4
  for (int m = 0; m < B; ++m)
#pragma GCC unroll 4
    for (int c = 0; c < N; ++c) sums[m][c] = result.load(m, c);
  for (int64_t i = 0; i < rows; ++i) {
    Simd<A> value[N];
#pragma GCC unroll 4
    for (int c = 0; c < N; ++c) value[c] = values.load(i, c);
#pragma GCC unroll 4
    for (int m = 0; m < B; ++m) {
      const Simd<A> pair = pairs.load(i, m);
#pragma GCC unroll 4
      for (int c = 0; c < N; ++c) {
        if (kTerms & kContent) sums[m][c] += pair * value[c];
        if (kTerms & kSecond) sums[m][c] += pair * table.at(i - m, c);
      }
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < B; ++m)
#pragma GCC unroll 4
    for (int c = 0; c < N; ++c) result.store(m, c, sums[m][c]);
}

template <typename A, int kTerms>
inline void sum_over_queries(Vectors<const A> pairs, Vectors<const A> values, Distances<A> table,
                             int64_t rows, int64_t keys, int64_t channels, Vectors<A> result) {
  constexpr int B = kPairBlock<A>;
  for (int64_t m = 0; m < keys; m += B)
    over_channels<A>(channels, [&](int64_t c, auto size) {
      sum_over_queries_block<A, kTerms, size>(pairs.from(0, m), values.from(0, c),
                                              table.from(-m, c), rows, result.from(m, c));
    });
}

// The sums over pairs of equal distance:
//   by_query:  result[w, c] += sum over i - m = w of pair[i, m] * value[i, c]
//   otherwise: result[w, c] += sum over i - m = w of pair[i, m] * value[m, c]
// `result` is that of the first row and key. N is the number of rows.
template <typename A, bool by_query, int N>
inline void sum_over_distances(Vectors<const A> pairs, Vectors<const A> values, int64_t keys,
                               int64_t channels, Vectors<A> result) {
  for (int64_t w = 1 - keys; w < N; ++w) {
    // the rows whose key lies inside
    const int first = static_cast<int>(int_max(0, w));
    const int last = static_cast<int>(int_min(N, w + keys));
    Simd<A> pair[N];
#pragma GCC unroll 8
    for (int i = 0; i < N; ++i) {
      pair[i] = Simd<A>{};
      if (i >= first && i < last) pair[i] = pairs.load(i, i - w);
    }
    for (int64_t c = 0; c < channels; ++c) {
      Simd<A> sum = result.load(w, c);
      if (first == 0 && last == N) {
#pragma GCC unroll 8
        for (int i = 0; i < N; ++i) sum += pair[i] * values.load(by_query ? i : i - w, c);
      } else {
        for (int i = first; i < last; ++i) sum += pair[i] * values.load(by_query ? i : i - w, c);
      }
      result.store(w, c, sum);
    }
  }
}

}  // namespace mmrednet::MMREDNET_ISA
