// Between a tensor and lines, one for each channel, in which neighbouring outputs lie together.

#pragma once

#ifdef MMREDNET_SHUFFLES
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#include "isa.h"
#include "simd.h"

namespace mmrednet::MMREDNET_ISA {

// Whether blocks of sixteen outputs are turned in registers: where a shuffle of sixteen lanes is
// one instruction, and MMREDNET_SHUFFLES says so.
template <typename A>
constexpr bool kTurned = false;

template <typename A>
inline void turn(typename Lanes<A, 16>::Vector*) {}

#ifdef MMREDNET_SHUFFLES
template <>
constexpr bool kTurned<float> = true;

// swaps the numbers whose lane and vector differ in a bit, bit by bit
template <>
inline void turn<float>(Lanes<float, 16>::Vector* s) {
  typedef Lanes<int32_t, 16>::Vector I;
  const I lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#pragma GCC unroll 4
  for (int bit = 1; bit < 16; bit *= 2) {
    // lanes 16 to 31 are those of the second vector
    const I first = (lane & bit) ? lane + (16 - bit) : lane,
            second = (lane & bit) ? lane + 16 : lane + bit;
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      if (i & bit) continue;
      const auto a = s[i], b = s[i + bit];
      s[i] = __builtin_shuffle(a, b, first);
      s[i + bit] = __builtin_shuffle(a, b, second);
    }
  }
}
#endif

// the first lanes alone
template <typename A>
inline void store_first(A* to, typename Lanes<A, 16>::Vector value, int64_t count) {
  for (int64_t n = 0; n < count; ++n) to[n] = value[n];
}
#ifdef MMREDNET_SHUFFLES
template <>
inline void store_first<float>(float* to, Lanes<float, 16>::Vector value, int64_t count) {
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), (__m512)value);
}
#endif

// `count` outputs of N channels, up to sixteen
template <typename T, typename A, int N>
inline void pack_block(A* to, int64_t pitch, const T* from, int64_t step, int64_t count) {
  typename Lanes<A, 16>::Vector s[16];
#pragma GCC unroll 16
  for (int x = 0; x < 16; ++x) {
    s[x] = typename Lanes<A, 16>::Vector{};
    if (x >= count) continue;
    const auto seen = load_lanes<A, N>(from + x * step);
    std::memcpy(&s[x], &seen, sizeof(seen));
  }
  turn<A>(s);
#pragma GCC unroll 16
  for (int d = 0; d < N; ++d) store_first<A>(to + d * pitch, s[d], count);
}

template <typename T, typename A, int N>
inline void unpack_block(T* to, int64_t step, const A* from, int64_t pitch, int64_t count) {
  typename Lanes<A, 16>::Vector s[16];
#pragma GCC unroll 16
  for (int d = 0; d < 16; ++d)
    s[d] = d < N ? load_lanes<A, 16>(from + d * pitch) : typename Lanes<A, 16>::Vector{};
  turn<A>(s);
#pragma GCC unroll 16
  for (int x = 0; x < 16; ++x) {
    if (x >= count) break;
    typename Lanes<A, N>::Vector seen;
    std::memcpy(&seen, &s[x], sizeof(seen));
    store_lanes<T, A, N>(to + x * step, seen);
  }
}

// what a tensor keeps at d * line + x * step, in lines: one for each d
template <typename T, typename A>
void pack_lines(A* to, int64_t pitch, const T* from, int64_t line, int64_t step, int64_t lines,
                int64_t count) {
  int64_t d = 0;
  if constexpr (kTurned<A>)
    for (; line == 1 && d + 8 <= lines; d += d + 16 <= lines ? 16 : 8)
      for (int64_t x = 0; x < count; x += 16) {
        const int64_t some = count - x < 16 ? count - x : 16;
        if (d + 16 <= lines)
          pack_block<T, A, 16>(to + d * pitch + x, pitch, from + x * step + d, step, some);
        else
          pack_block<T, A, 8>(to + d * pitch + x, pitch, from + x * step + d, step, some);
      }
  for (; d < lines; ++d)
    for (int64_t x = 0; x < count; ++x) to[d * pitch + x] = load<A>(from[d * line + x * step]);
}

// Lines back to where a tensor keeps them. Lines have numbers, which may be anything, up to a
// multiple of sixteen.
template <typename T, typename A>
void unpack_lines(T* to, int64_t line, int64_t step, const A* from, int64_t pitch, int64_t lines,
                  int64_t count) {
  if (step == 1) {
    for (int64_t d = 0; d < lines; ++d)
      for (int64_t x = 0; x < count; ++x) to[d * line + x] = store<T>(from[d * pitch + x]);
    return;
  }
  for (int64_t x = 0; x < count; x += 16) {
    const int64_t some = count - x < 16 ? count - x : 16;
    int64_t d = 0;
    if constexpr (kTurned<A>)
      for (; line == 1 && d + 8 <= lines; d += d + 16 <= lines ? 16 : 8) {
        if (d + 16 <= lines)
          unpack_block<T, A, 16>(to + x * step + d, step, from + d * pitch + x, pitch, some);
        else
          unpack_block<T, A, 8>(to + x * step + d, step, from + d * pitch + x, pitch, some);
      }
    for (int64_t i = x; i < x + some; ++i)
      for (int64_t e = d; e < lines; ++e) to[e * line + i * step] = store<T>(from[e * pitch + i]);
  }
}

// zeros in the lines from `first` on
template <typename A>
void clear_lines(A* to, int64_t pitch, int64_t lines, int64_t first) {
  for (int64_t d = 0; d < lines; ++d)
    for (int64_t x = first; x < pitch; ++x) to[d * pitch + x] = 0;
}

}  // namespace mmrednet::MMREDNET_ISA
