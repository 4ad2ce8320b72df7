// Matrices in the workspace of a thread.

#pragma once

#include <cstdint>

#include "isa.h"

namespace mmrednet::MMREDNET_ISA {

// A row-major matrix: element (i, j) is data[i * pitch + j].
template <typename A>
struct Matrix {
  A* data;
  int64_t pitch, rows, columns;

  // The part of the matrix from a row and a column on.
  Matrix from(int64_t row, int64_t column) const {
    return {data + row * pitch + column, pitch, rows - row, columns - column};
  }

  // The same matrix, to be read only.
  operator Matrix<const A>() const { return {data, pitch, rows, columns}; }
};

// Sets the columns from `begin` to the end of the pitch to zero.
template <typename A>
inline void zero_columns(Matrix<A> matrix, int64_t begin) {
  for (int64_t i = 0; i < matrix.rows; ++i)
    for (int64_t j = begin; j < matrix.pitch; ++j) matrix.data[i * matrix.pitch + j] = 0;
}

}  // namespace mmrednet::MMREDNET_ISA
