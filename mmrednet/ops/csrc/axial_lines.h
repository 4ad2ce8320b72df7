// Copies between tensors and lines side by side: vectors of one element of 16 lines.

#pragma once

#ifdef MMREDNET_SHUFFLES
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#include "axial_params.h"
#include "integers.h"
#include "isa.h"
#include "params.h"
#include "simd.h"
#include "transpose.h"

namespace mmrednet::MMREDNET_ISA {

// Up to 16 neighbouring lines of one head.
struct LineTile {
  // where each line begins in a tensor
  int64_t offset[kSimdWidth];
  int64_t count;
  // whether neighbouring lines are neighbours in memory
  bool adjacent;
};

inline LineTile line_tile(const AxialParams& p, const Strides& strides, int64_t item) {
  const int64_t head = item % p.heads, first = item / p.heads * kSimdWidth;
  LineTile tile;
  tile.count = int_min(p.images * p.image_lines - first, kSimdWidth);
  tile.adjacent = true;
  for (int64_t n = 0; n < tile.count; ++n) {
    const int64_t image = (first + n) / p.image_lines, line = (first + n) % p.image_lines;
    tile.offset[n] = image * strides.b + head * strides.g + line * strides.h;
    tile.adjacent = tile.adjacent && tile.offset[n] == tile.offset[0] + n;
  }
  return tile;
}

// The first `count` elements of a vector; the others are zero.
template <typename T, typename A>
inline Simd<A> load_first(const T* source, int64_t count) {
  if (count == kSimdWidth) return load_vector<A, kSimdWidth>(source);
  Simd<A> result = {};
  for (int64_t n = 0; n < count; ++n) result[n] = load<A>(source[n]);
  return result;
}

// Stores the first `count` elements of a vector in the dtype of a tensor.
template <typename T, typename A>
inline void store_first_of(T* target, Simd<A> value, int64_t count) {
  for (int64_t n = 0; n < count; ++n) target[n] = store<T>(static_cast<A>(value[n]));
}

#ifdef MMREDNET_SHUFFLES
// A loop over the elements takes ten times as long as a masked instruction.
template <>
inline Simd<float> load_first<float, float>(const float* source, int64_t count) {
  const auto mask = static_cast<__mmask16>((1u << count) - 1);
  return (Simd<float>)_mm512_maskz_loadu_ps(mask, source);
}

template <>
inline void store_first_of<float, float>(float* target, Simd<float> value, int64_t count) {
  store_first<float>(target, value, count);
}

template <>
inline Simd<float> load_first<BFloat16, float>(const BFloat16* source, int64_t count) {
  const auto mask = static_cast<__mmask16>((1u << count) - 1);
  const __m512i bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, source));
  return (Simd<float>)_mm512_slli_epi32(bits, 16);
}

// Rounds as store<BFloat16>() does.
template <>
inline void store_first_of<BFloat16, float>(BFloat16* target, Simd<float> value, int64_t count) {
  using Bits = Vector<uint32_t, kSimdWidth>;
  Bits bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Bits result = value != value ? Bits{} + 0x7fc0 : rounded;
  const auto mask = static_cast<__mmask16>((1u << count) - 1);
  _mm256_mask_storeu_epi16(target, mask, _mm512_cvtepi32_epi16((__m512i)result));
}
#endif

// Vectors of one element of each line. Element (u, o) of a line lies at u * inner + o * outer of
// the tensor, and at u * inner_vectors + o * outer_vectors of the vectors.
struct LineCopy {
  int64_t inner_size, outer_size, inner, outer, inner_vectors, outer_vectors;
};

// Channels and positions of lines, that with the smaller stride inside.
inline LineCopy line_copy(const Strides& strides, int64_t channels, int64_t positions) {
  if (strides.c == 1 || strides.w != 1)
    return {channels, positions, strides.c, strides.w, 1, channels};
  return {positions, channels, strides.w, strides.c, channels, 1};
}

template <typename T, typename A>
void pack_lines(A* target, const T* source, const LineTile& tile, const LineCopy& copy) {
  for (int64_t o = 0; o < copy.outer_size; ++o) {
    const T* from = source + o * copy.outer;
    A* to = target + o * copy.outer_vectors * kSimdWidth;
    const int64_t step = copy.inner_vectors * kSimdWidth;
    if (tile.adjacent) {
      for (int64_t u = 0; u < copy.inner_size; ++u)
        store_simd<A>(to + u * step,
                      load_first<T, A>(from + tile.offset[0] + u * copy.inner, tile.count));
    } else if (kTransposesBlocks<A> && copy.inner == 1) {
      for (int64_t u = 0; u < copy.inner_size; u += kSimdWidth) {
        const int64_t size = int_min(copy.inner_size - u, kSimdWidth);
        Simd<A> block[kSimdWidth] = {};
        for (int64_t n = 0; n < tile.count; ++n)
          block[n] = load_first<T, A>(from + tile.offset[n] + u, size);
        transpose_block<A>(block);
        for (int64_t x = 0; x < size; ++x) store_simd<A>(to + (u + x) * step, block[x]);
      }
    } else {
      for (int64_t u = 0; u < copy.inner_size; ++u) {
        Simd<A> vector = {};
        for (int64_t n = 0; n < tile.count; ++n)
          vector[n] = load<A>(from[tile.offset[n] + u * copy.inner]);
        store_simd<A>(to + u * step, vector);
      }
    }
  }
}

// The way back.
template <typename T, typename A>
void unpack_lines(T* target, const A* source, const LineTile& tile, const LineCopy& copy) {
  for (int64_t o = 0; o < copy.outer_size; ++o) {
    T* to = target + o * copy.outer;
    const A* from = source + o * copy.outer_vectors * kSimdWidth;
    const int64_t step = copy.inner_vectors * kSimdWidth;
    if (tile.adjacent) {
      for (int64_t u = 0; u < copy.inner_size; ++u)
        store_first_of<T, A>(to + tile.offset[0] + u * copy.inner, load_simd<A>(from + u * step),
                             tile.count);
    } else if (kTransposesBlocks<A> && copy.inner == 1) {
      for (int64_t u = 0; u < copy.inner_size; u += kSimdWidth) {
        const int64_t size = int_min(copy.inner_size - u, kSimdWidth);
        Simd<A> block[kSimdWidth] = {};
        for (int64_t x = 0; x < size; ++x) block[x] = load_simd<A>(from + (u + x) * step);
        transpose_block<A>(block);
        for (int64_t n = 0; n < tile.count; ++n)
          store_first_of<T, A>(to + tile.offset[n] + u, block[n], size);
      }
    } else {
      for (int64_t u = 0; u < copy.inner_size; ++u) {
        const Simd<A> vector = load_simd<A>(from + u * step);
        for (int64_t n = 0; n < tile.count; ++n)
          to[tile.offset[n] + u * copy.inner] = store<T>(static_cast<A>(vector[n]));
      }
    }
  }
}

}  // namespace mmrednet::MMREDNET_ISA
