// Vectors of neighbouring numbers.

#pragma once

#include <cstdint>
#include <cstring>

#include "isa.h"

namespace mmrednet::MMREDNET_ISA {

// the upper half of a float
struct BFloat16 {
  uint16_t bits;
};

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

template <typename T, typename A>
inline T store(A value) {
  return static_cast<T>(value);
}
// to the nearest, ties to even, as torch rounds
template <>
inline BFloat16 store<BFloat16, float>(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if (value != value) return BFloat16{0x7fc0};
  return BFloat16{static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

// N neighbouring numbers, which the compiler keeps in registers
template <typename A, int N>
struct Lanes {
  typedef A Vector __attribute__((vector_size(N * sizeof(A))));
};

template <typename A, int N>
inline typename Lanes<A, N>::Vector load_lanes(const A* from) {
  typename Lanes<A, N>::Vector result;
  std::memcpy(&result, from, sizeof(result));
  return result;
}

template <typename A, int N>
inline typename Lanes<A, N>::Vector load_lanes(const BFloat16* from) {
  typename Lanes<uint16_t, N>::Vector half;
  std::memcpy(&half, from, sizeof(half));
  const auto bits = __builtin_convertvector(half, typename Lanes<uint32_t, N>::Vector) << 16;
  typename Lanes<A, N>::Vector result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

template <typename T, typename A, int N>
inline void store_lanes(T* to, typename Lanes<A, N>::Vector value) {
  for (int n = 0; n < N; ++n) to[n] = store<T>(static_cast<A>(value[n]));
}

}  // namespace mmrednet::MMREDNET_ISA
