// Copies between tensors of any strides and matrices whose rows are contiguous.
//
// A row of such a matrix is one channel (or tap), a column one output. Of a channels-last tensor
// this is a transpose.

#pragma once

#ifdef MMREDNET_SHUFFLES
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "integers.h"
#include "isa.h"
#include "matrix.h"
#include "simd.h"
#include "simd_pairs.h"

namespace mmrednet::MMREDNET_ISA {

// Whether 16 x 16 blocks are transposed in registers. It needs a shuffle of two registers of 16
// elements in one instruction, which AVX-512 has for floats; MMREDNET_SHUFFLES is defined there.
// Elsewhere elements are copied one by one.
template <typename A>
constexpr bool kTransposesBlocks = false;

template <typename A>
inline void transpose_block(Simd<A>*) {}

#ifdef MMREDNET_SHUFFLES
template <>
constexpr bool kTransposesBlocks<float> = true;

// Transposes 16 vectors in place. Element (i, j) goes to (j, i) in four steps, one for each bit of
// the indices: a step swaps the elements whose row and column differ in that bit.
template <>
inline void transpose_block<float>(Simd<float>* rows) {
  using Index = Vector<int32_t, kSimdWidth>;
  const Index lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#pragma GCC unroll 4
  for (int bit = 1; bit < kSimdWidth; bit *= 2) {
    // in a shuffle, lanes 16 to 31 are those of its second vector
    const Index lower = (lane & bit) ? lane + (kSimdWidth - bit) : lane;
    const Index upper = (lane & bit) ? lane + kSimdWidth : lane + bit;
#pragma GCC unroll 16
    for (int i = 0; i < kSimdWidth; ++i) {
      if (i & bit) continue;
      const auto first = rows[i], second = rows[i + bit];
      rows[i] = __builtin_shuffle(first, second, lower);
      rows[i + bit] = __builtin_shuffle(first, second, upper);
    }
  }
}
#endif

// Stores the first `count` elements of a vector.
template <typename A>
inline void store_first(A* target, Simd<A> value, int64_t count) {
  for (int64_t n = 0; n < count; ++n) target[n] = value[n];
}
#ifdef MMREDNET_SHUFFLES
template <>
inline void store_first<float>(float* target, Simd<float> value, int64_t count) {
  const auto mask = static_cast<__mmask16>((1u << count) - 1);
  _mm512_mask_storeu_ps(target, mask, (__m512)value);
}
#endif

// Transposes up to 16 outputs of N contiguous channels, or pairs of channels; neighbouring outputs
// are `stride` apart.
template <typename T, typename A, int N, bool kPairs = false>
inline void pack_block(A* target, int64_t pitch, const T* source, int64_t stride, int64_t outputs) {
  // a pair is copied as it is
  using Element = std::conditional_t<kPairs, A, T>;
  Simd<A> block[kSimdWidth];
#pragma GCC unroll 16
  for (int x = 0; x < kSimdWidth; ++x) {
    block[x] = Simd<A>{};
    if (x >= outputs) continue;
    const auto channels = load_vector<A, N>(reinterpret_cast<const Element*>(source + x * stride));
    std::memcpy(&block[x], &channels, sizeof(channels));
  }
  transpose_block<A>(block);
#pragma GCC unroll 16
  for (int d = 0; d < N; ++d) store_first<A>(target + d * pitch, block[d], outputs);
}

// The way back.
template <typename T, typename A, int N>
inline void unpack_block(T* target, int64_t stride, const A* source, int64_t pitch,
                         int64_t outputs) {
  Simd<A> block[kSimdWidth];
#pragma GCC unroll 16
  for (int d = 0; d < kSimdWidth; ++d)
    block[d] = d < N ? load_simd<A>(source + d * pitch) : Simd<A>{};
  transpose_block<A>(block);
#pragma GCC unroll 16
  for (int x = 0; x < kSimdWidth; ++x) {
    if (x >= outputs) break;
    Vector<A, N> channels;
    std::memcpy(&channels, &block[x], sizeof(channels));
    store_converted<T, A, N>(target + x * stride, channels);
  }
}

// The first multiple of 8 rows of pack_matrix(), if they are contiguous in the tensor: blocks of 16
// channels, and a last one of 8. Returns their number.
template <typename T, typename A>
inline int64_t pack_blocks(Matrix<A> to, const T* source, int64_t stride) {
  const int64_t last = to.rows / 16 * 16;
  for (int64_t j = 0; j < to.columns; j += kSimdWidth) {
    const int64_t count = int_min(to.columns - j, kSimdWidth);
    const T* column = source + j * stride;
    for (int64_t i = 0; i < last; i += 16)
      pack_block<T, A, 16>(to.data + i * to.pitch + j, to.pitch, column + i, stride, count);
    if (to.rows - last >= 8)
      pack_block<T, A, 8>(to.data + last * to.pitch + j, to.pitch, column + last, stride, count);
  }
  return to.rows / 8 * 8;
}

// Copies the tensor elements (i, j) at source[i * row_stride + j * column_stride] into a matrix.
template <typename T, typename A>
void pack_matrix(Matrix<A> to, const T* source, int64_t row_stride, int64_t column_stride) {
  int64_t i = 0;
  if constexpr (kTransposesBlocks<A>)
    if (row_stride == 1) i = pack_blocks<T, A>(to, source, column_stride);
  for (; i < to.rows; ++i)
    for (int64_t j = 0; j < to.columns; ++j)
      to.data[i * to.pitch + j] = load<A>(source[i * row_stride + j * column_stride]);
}

// The blocks of pack_pairs(), if channels are contiguous in the tensor: the first multiple of 4
// rows. Returns their number.
template <typename T, typename A>
inline int64_t pack_pair_blocks(Matrix<A> to, const T* source, int64_t stride) {
  for (int64_t j = 0; j < to.columns; j += kSimdWidth) {
    const int64_t count = int_min(to.columns - j, kSimdWidth);
    const auto run = [&](auto rows, int64_t i) {
      pack_block<T, A, rows, true>(to.data + i * to.pitch + j, to.pitch,
                                   source + j * stride + 2 * i, stride, count);
    };
    int64_t i = 0;
    for (; i + 16 <= to.rows; i += 16) run(std::integral_constant<int, 16>(), i);
    for (; i + 8 <= to.rows; i += 8) run(std::integral_constant<int, 8>(), i);
    for (; i + 4 <= to.rows; i += 4) run(std::integral_constant<int, 4>(), i);
  }
  return to.rows / 4 * 4;
}

// Copies the tensor elements (i, j), i < rows, as pack_matrix() does, two rows of them as one row
// of pairs. The last pair of an odd number of rows ends with zero.
template <typename T, typename A>
void pack_pairs(Matrix<A> to, const T* source, int64_t rows, int64_t row_stride,
                int64_t column_stride) {
  const Matrix<A> whole = {to.data, to.pitch, rows / 2, to.columns};
  int64_t i = row_stride == 1 ? pack_pair_blocks<T, A>(whole, source, column_stride) : 0;
  for (; i < num_pairs(rows); ++i) {
    const T* first = source + 2 * i * row_stride;
    const bool is_whole = 2 * i + 1 < rows;
    for (int64_t j = 0; j < to.columns; ++j) {
      const T* column = first + j * column_stride;
      to.data[i * to.pitch + j] = pair_of<A>(column[0], is_whole ? column[row_stride] : T{});
    }
  }
}

// The way back of pack_blocks(), for up to 16 columns.
template <typename T, typename A>
inline int64_t unpack_blocks(T* target, int64_t stride, Matrix<const A> from) {
  const int64_t last = from.rows / 16 * 16;
  for (int64_t i = 0; i < last; i += 16)
    unpack_block<T, A, 16>(target + i, stride, from.data + i * from.pitch, from.pitch,
                           from.columns);
  if (from.rows - last >= 8)
    unpack_block<T, A, 8>(target + last, stride, from.data + last * from.pitch, from.pitch,
                          from.columns);
  return from.rows / 8 * 8;
}

// Copies a matrix to the tensor elements (i, j) at target[i * row_stride + j * column_stride].
// Whole vectors are read, so its rows must reach to a multiple of the SIMD width. What lies behind
// the last column may be anything.
template <typename T, typename A>
void unpack_matrix(T* target, int64_t row_stride, int64_t column_stride, Matrix<const A> from) {
  if (column_stride == 1) {
    for (int64_t i = 0; i < from.rows; ++i)
      for (int64_t j = 0; j < from.columns; ++j)
        target[i * row_stride + j] = store<T>(from.data[i * from.pitch + j]);
    return;
  }
  for (int64_t j = 0; j < from.columns; j += kSimdWidth) {
    Matrix<const A> columns = from.from(0, j);
    columns.columns = int_min(columns.columns, kSimdWidth);
    T* corner = target + j * column_stride;
    int64_t i = 0;
    if constexpr (kTransposesBlocks<A>)
      if (row_stride == 1) i = unpack_blocks<T, A>(corner, column_stride, columns);
    // column by column: the elements of one lie together in a channels-last tensor
    for (int64_t x = 0; x < columns.columns; ++x)
      for (int64_t d = i; d < columns.rows; ++d)
        corner[d * row_stride + x * column_stride] = store<T>(columns.data[d * columns.pitch + x]);
  }
}

}  // namespace mmrednet::MMREDNET_ISA
