// The parameters of attention along lines, and how much memory a thread needs for it.
//
// See mmrednet/ops/axial.py for the formula. Like params.h, this header is shared by all
// instruction sets.

#pragma once

#include <cstdint>

#include "integers.h"
#include "params.h"

namespace mmrednet {

// Attention along lines. A SIMD vector holds one element of 16 neighbouring lines, so that a pair
// of positions is computed for 16 lines at once, with the tables of positions as scalars. The unit
// of work is one head of 16 lines.
//
// The strides of lines are (image, head, channel, line, position).
struct AxialParams {
  // queries, keys and values, one behind the other among the channels of a head
  Strides lines;
  // the result, and the gradient of the result: channels are (channel of the value, part)
  Strides result;
  int64_t images, heads, image_lines, length;
  int64_t key_channels, value_channels;
  // parts of the result for each channel: content, or content and position
  int64_t parts;
  // whether positions are added to the values, with a result of one part
  bool adds_positions;
  // pairs of positions further apart than this have no weight
  int64_t reach;
  // chunks of work items that have sums of their own in the backward pass
  int64_t chunks;
};

// `pitch` below is the number of all channels of a head.
struct AxialPointers {
  const void* lines;
  // Entries (2 * padded length - 1, pitch) for the distances i - m, in the accumulator type: those
  // of queries, of keys (whose own distance is m - i) and of values.
  const void* table;
  // factors (terms, heads) of all three terms, in the accumulator type
  const void* scale;
  // factors (heads, value channels) of positions that are added, in the accumulator type, or null
  const void* position_scale;
  void* result;
  // for the backward pass: gradient of the result, and gradients in the layout of `lines`
  const void* grad;
  void* grad_lines;
  // sums of each chunk of work: (chunks, 2 * padded length - 1, pitch) and (chunks, terms, heads)
  double *table_sums, *scale_sums;
  // mean and sum of squared deviations of each term, (work items, terms, 2)
  double* moments;
  // gradient of each logit as a function of the logit x: offset + slope * x, each (terms, heads)
  const void *offset, *slope;
};

// Terms of the logits: query and key, query and position, key and position.
constexpr int64_t kAxialTerms = 3;

// Positions are padded to whole blocks, which kernels compute at once.
constexpr int64_t kAxialBlock = 4;

// Rows of pairs that are computed together. With a short reach they are fewer, since each row
// covers other keys.
constexpr int64_t kAxialRows = 2 * kAxialBlock;

// Keys of a chunk of the forward pass. Its logits, keys and values stay in the first-level cache.
constexpr int64_t kAxialChunk = 16;

static inline int64_t padded_length(const AxialParams& p) {
  return ceil_div(p.length, kAxialBlock) * kAxialBlock;
}

static inline int64_t table_rows(const AxialParams& p) { return 2 * padded_length(p) - 1; }

static inline int64_t line_channels(const AxialParams& p) {
  return 2 * p.key_channels + p.value_channels;
}

static inline int64_t line_tiles(const AxialParams& p) {
  return ceil_div(p.images * p.image_lines, kSimdWidth);
}

// Pairs of positions within reach: those of a line less a triangle at each end.
static inline int64_t pairs_of_a_line(const AxialParams& p) {
  const int64_t reach = int_min(p.reach, p.length - 1);
  return p.length * (2 * reach + 1) - reach * (reach + 1);
}

static inline int64_t work_items(const AxialParams& p) { return p.heads * line_tiles(p); }

// Elements of the workspace that all passes share: lines, scaled queries of some rows, and a table.
static inline int64_t axial_line_elements(const AxialParams& p) {
  const int64_t vectors = padded_length(p) * line_channels(p) + kAxialRows * p.key_channels;
  return vectors * kSimdWidth + round_up(table_rows(p) * line_channels(p));
}

// The forward pass: results, and the logits of a chunk.
static inline int64_t axial_forward_elements(const AxialParams& p) {
  const int64_t results = padded_length(p) * p.value_channels * p.parts;
  return axial_line_elements(p) + (results + kAxialRows * kAxialChunk) * kSimdWidth;
}

// The backward passes: gradients of result, lines and table, some rows of logits and of their
// gradients or, for the moments, of each term, and gradients of the queries of these rows.
static inline int64_t axial_backward_elements(const AxialParams& p) {
  const int64_t length = padded_length(p), channels = line_channels(p);
  const int64_t vectors = length * (p.value_channels * p.parts + channels) +
                          table_rows(p) * channels + kAxialTerms * kAxialRows * length +
                          kAxialRows * p.key_channels;
  return axial_line_elements(p) + vectors * kSimdWidth;
}

}  // namespace mmrednet
