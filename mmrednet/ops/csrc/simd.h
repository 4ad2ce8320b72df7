// SIMD vectors and bfloat16.
//
// Vectors are those of the compiler's vector extension. It takes as many registers as a vector
// needs, so the same code serves every instruction set.

#pragma once

#ifdef MMREDNET_BF16_DOT
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#include "integers.h"
#include "isa.h"

namespace mmrednet::MMREDNET_ISA {

// The upper half of a float.
struct BFloat16 {
  uint16_t bits;
};

// One element, converted to the accumulator type A.
template <typename A, typename T>
inline A load(T value) {
  return static_cast<A>(value);
}
template <>
inline float load<float, BFloat16>(BFloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

// One sum, converted to the dtype T of a tensor.
template <typename T, typename A>
inline T store(A value) {
  return static_cast<T>(value);
}
// Rounds to nearest, ties to even, as torch does: adding 0x7fff carries into the upper half if the
// lower half is more than one half; the lowest bit that stays decides a tie.
template <>
inline BFloat16 store<BFloat16, float>(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  // the carry could turn a NaN into an infinity
  if (value != value) return BFloat16{0x7fc0};
  return BFloat16{static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

template <typename A, int N>
struct VectorType {
  typedef A Type __attribute__((vector_size(N * sizeof(A))));
};

// N elements of type A.
template <typename A, int N>
using Vector = typename VectorType<A, N>::Type;

// The vector that most kernels work with.
template <typename A>
using Simd = Vector<A, kSimdWidth>;

// Loads and stores go through memcpy, which the compiler turns into one unaligned access.
template <typename A, int N>
inline Vector<A, N> load_vector(const A* source) {
  Vector<A, N> result;
  std::memcpy(&result, source, sizeof(result));
  return result;
}

template <typename A, int N>
inline Vector<A, N> load_vector(const BFloat16* source) {
  const Vector<uint16_t, N> upper_halves = load_vector<uint16_t, N>(&source->bits);
  const auto bits = __builtin_convertvector(upper_halves, Vector<uint32_t, N>) << 16;
  Vector<A, N> result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

template <typename A>
inline Simd<A> load_simd(const A* source) {
  return load_vector<A, kSimdWidth>(source);
}

template <typename A>
inline void store_simd(A* target, Simd<A> value) {
  std::memcpy(target, &value, sizeof(value));
}

// Stores a vector of sums in the dtype of a tensor.
template <typename T, typename A, int N>
inline void store_converted(T* target, Vector<A, N> value) {
#ifdef MMREDNET_BF16_DOT
  // one instruction, which rounds as store() does; subnormal numbers become zero
  if constexpr (sizeof(T) == 2 && N == 16) {
    const auto halves = _mm512_cvtneps_pbh((__m512)value);
    std::memcpy(target, &halves, sizeof(halves));
    return;
  } else if constexpr (sizeof(T) == 2 && N == 8) {
    const auto halves = _mm256_cvtneps_pbh((__m256)value);
    std::memcpy(target, &halves, sizeof(halves));
    return;
  }
#endif
  for (int n = 0; n < N; ++n) target[n] = store<T>(static_cast<A>(value[n]));
}

// Stores as many sums of a vector as there are columns left, in the dtype of a tensor.
template <typename T, typename A>
inline void store_columns(T* target, Simd<A> value, int64_t columns) {
  if (columns >= kSimdWidth) return store_converted<T, A, kSimdWidth>(target, value);
  for (int64_t n = 0; n < columns; ++n) target[n] = store<T>(static_cast<A>(value[n]));
}

}  // namespace mmrednet::MMREDNET_ISA
