// Where a window meets the feature map, and in which order outputs are computed.

#pragma once

#include <cstdint>

#include "integers.h"
#include "isa.h"
#include "params.h"

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

// The position of the first tap of an output along one axis.
inline int64_t first_tap(int64_t output, int64_t stride, int64_t padding, int64_t kernel,
                         int64_t size, bool shifted) {
  const int64_t start = output * stride - padding;
  return shifted ? int_max(0, int_min(start, size - kernel)) : start;
}

// The row of the map of the first row of the window of an output row.
inline int64_t first_row(const LocalParams& p, int64_t y) {
  const Window& window = p.window;
  return first_tap(y, window.stride_h, window.padding_h, window.kernel_h, p.height, window.shifted);
}

// The column of the map of the first tap of an output.
inline int64_t first_column(const LocalParams& p, int64_t x) {
  const Window& window = p.window;
  return first_tap(x, window.stride_w, window.padding_w, window.kernel_w, p.width, window.shifted);
}

// Whether some of the 16 outputs from x on have windows that are shifted.
inline bool has_border(const LocalParams& p, int64_t x) {
  const int64_t reach = p.window.padding_w;
  return p.window.shifted && (x < reach || x + kSimdWidth > p.width - reach);
}

// The outputs along one axis whose shifted window starts at `start`: at both ends there are many.
inline Range outputs_starting_at(int64_t start, int64_t kernel, int64_t size) {
  const int64_t last = size - kernel, centre = start + kernel / 2;
  if (start < 0 || start > last) return {0, 0};
  return {start == 0 ? 0 : centre, start == last ? size : centre + 1};
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
