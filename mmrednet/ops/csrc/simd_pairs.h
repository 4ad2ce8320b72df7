// Pairs of bfloat16 numbers: one instruction multiplies both and adds the products to a float.
//
// A pair takes the place of a float, its first number in the lower half. So packed rows and
// matrices of pairs are those of the accumulator type, with half as many rows or taps to go
// through.

#pragma once

#ifdef MMREDNET_BF16_DOT
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#include "integers.h"
#include "isa.h"
#include "simd.h"

namespace mmrednet::MMREDNET_ISA {

// Whether tensors of type T are multiplied in pairs. It needs AVX512-BF16; MMREDNET_BF16_DOT is
// defined there. The functions below do nothing elsewhere, and are not called.
template <typename T>
constexpr bool kDotsPairs = false;

// The bits of a vector of floats.
using PairBits = Vector<uint32_t, kSimdWidth>;

constexpr int64_t num_pairs(int64_t count) { return (count + 1) / 2; }

// sum + first * first of the other + second * second of the other.
//
// vdpbf16ps rounds to nearest and takes subnormal numbers as zero, whatever the settings of the
// processor are.
template <typename A>
inline Simd<A> dot_pairs(Simd<A> sum, Simd<A>, Simd<A>) {
  return sum;
}

// Pairs of the elements of two vectors, rounded to bfloat16.
template <typename A>
inline Simd<A> make_pairs(Simd<A> first, Simd<A>) {
  return first;
}

// Pairs of the elements of two vectors that are bfloat16 numbers already.
template <typename A>
inline Simd<A> join_pairs(Simd<A> first, Simd<A>) {
  return first;
}

// The first number of each pair, with zero for the second.
template <typename A>
inline Simd<A> first_of_pairs(Simd<A> pairs) {
  return pairs;
}

// The first and the second number of each pair, as floats.
template <typename A>
inline Simd<A> first_number(Simd<A> pairs) {
  return (Simd<A>)((PairBits)pairs << 16);
}
template <typename A>
inline Simd<A> second_number(Simd<A> pairs) {
  return (Simd<A>)((PairBits)pairs & 0xffff0000u);
}

#ifdef MMREDNET_BF16_DOT
template <>
constexpr bool kDotsPairs<BFloat16> = true;

template <>
inline Simd<float> dot_pairs<float>(Simd<float> sum, Simd<float> left, Simd<float> right) {
  return (Simd<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
}

template <>
inline Simd<float> make_pairs<float>(Simd<float> first, Simd<float> second) {
  // words 0 to 15 are the first vector, 16 to 31 the second
  using Words = Vector<uint16_t, 2 * kSimdWidth>;
  constexpr Words kInterleaved = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                  8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const auto words = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
  return (Simd<float>)_mm512_permutexvar_epi16((__m512i)kInterleaved, words);
}

template <>
inline Simd<float> join_pairs<float>(Simd<float> first, Simd<float> second) {
  return (Simd<float>)(((PairBits)first >> 16) | (PairBits)second);
}

template <>
inline Simd<float> first_of_pairs<float>(Simd<float> pairs) {
  return (Simd<float>)((PairBits)pairs & 0xffffu);
}
#endif

// One pair, in every lane.
inline Simd<float> broadcast_pair(uint32_t pair) { return (Simd<float>)(PairBits{} + pair); }

// Two numbers as a pair.
template <typename A, typename T>
inline A pair_of(T, T) {
  return A{};
}
template <>
inline float pair_of<float, BFloat16>(BFloat16 first, BFloat16 second) {
  const uint32_t bits = first.bits | static_cast<uint32_t>(second.bits) << 16;
  float pair;
  std::memcpy(&pair, &bits, sizeof(pair));
  return pair;
}

// Replaces the numbers of a row by pairs with those of a second row, which may be shorter. With
// kJoined the second row consists of pairs, whose first numbers are taken.
template <typename A, bool kJoined = false>
inline void join_rows(A* row, int64_t length, const A* second, int64_t second_length) {
  const auto numbers = [](Simd<A> vector) { return kJoined ? first_number<A>(vector) : vector; };
  int64_t x = 0;
  for (; x + kSimdWidth <= int_min(length, second_length); x += kSimdWidth)
    store_simd<A>(row + x, join_pairs<A>(load_simd<A>(row + x), numbers(load_simd<A>(second + x))));
  for (; x < length; ++x) {
    Simd<A> first = {}, next = {};
    first[0] = row[x];
    if (x < second_length) next[0] = second[x];
    row[x] = join_pairs<A>(first, numbers(next))[0];
  }
}

}  // namespace mmrednet::MMREDNET_ISA
