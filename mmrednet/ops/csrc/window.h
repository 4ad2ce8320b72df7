// Where a window meets the feature map, and in which order outputs are computed.

#pragma once

#include <cstdint>

#include "integers.h"
#include "isa.h"

namespace mmrednet::MMREDNET_ISA {

// Indices [begin, end).
struct Range {
  int64_t begin, end;
};

// The taps of one axis that lie inside the feature map, for a window whose first tap is at `start`.
inline Range taps_inside(int64_t start, int64_t dilation, int64_t size, int64_t kernel) {
  const int64_t begin = start < 0 ? ceil_div(-start, dilation) : 0;
  const int64_t room = size - 1 - start;
  const int64_t end = room < 0 ? 0 : room / dilation + 1;
  return {begin, int_min(end, kernel)};
}

// The outputs along one axis whose tap lies inside the feature map.
inline Range outputs_inside(int64_t tap, int64_t stride, int64_t dilation, int64_t padding,
                            int64_t size, int64_t outputs) {
  const int64_t offset = tap * dilation - padding;
  const int64_t begin = offset < 0 ? ceil_div(-offset, stride) : 0;
  const int64_t room = size - 1 - offset;
  const int64_t end = room < 0 ? 0 : room / stride + 1;
  return {int_min(begin, outputs), int_min(end, outputs)};
}

// A row of one group of one image.
struct RowIndex {
  int64_t image, group, row;
};

// The order of work. Usually the rows of a group follow one another. With `groups_together`, the
// groups of a row do: they are neighbours in a channels-last feature map.
inline RowIndex row_index(int64_t item, int64_t rows, int64_t groups, bool groups_together) {
  const int64_t image = item / (rows * groups);
  const int64_t remainder = item % (rows * groups);
  if (groups_together) return {image, remainder % groups, remainder / groups};
  return {image, remainder / rows, remainder % rows};
}

}  // namespace mmrednet::MMREDNET_ISA
