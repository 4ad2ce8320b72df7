// Which taps and which outputs meet on the map, and in which order outputs are computed.

#pragma once

#include <cstdint>

#include "isa.h"

namespace mmrednet::MMREDNET_ISA {

// taps [begin, end) along one axis that fall on the map, for a window whose first tap is at `start`
inline void inside(int64_t start, int64_t dilation, int64_t size, int64_t kernel, int64_t* begin,
                   int64_t* end) {
  *begin = start < 0 ? (-start + dilation - 1) / dilation : 0;
  *end = size - 1 - start < 0 ? 0 : (size - 1 - start) / dilation + 1;
  if (*end > kernel) *end = kernel;
}

// outputs [first, last) along one axis whose tap falls on the map
inline void valid(int64_t tap, int64_t stride, int64_t dilation, int64_t padding, int64_t size,
                  int64_t outputs, int64_t* first, int64_t* last) {
  const int64_t offset = tap * dilation - padding;
  const int64_t begin = offset < 0 ? (-offset + stride - 1) / stride : 0;
  const int64_t room = size - 1 - offset;
  const int64_t end = room < 0 ? 0 : room / stride + 1;
  *first = begin < outputs ? begin : outputs;
  *last = end < outputs ? end : outputs;
}

struct Place {
  int64_t image, group, row;
};

// the order of work: rows of one group one after another, or the groups of one row, which lie
// together in a channels-last map
inline Place place_of(int64_t line, int64_t rows, int64_t groups, bool by_row) {
  const int64_t rest = line % (rows * groups);
  return {line / (rows * groups), by_row ? rest % groups : rest / rows,
          by_row ? rest / groups : rest % rows};
}

}  // namespace mmrednet::MMREDNET_ISA
