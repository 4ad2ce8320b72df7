// The parameters of vector attention, and how its work and its workspace are divided. Like params.h
// it is shared by files that know torch and by the kernels.
//
// A strip is some rows of outputs of one image. The rows of keys and values that it looks at are
// packed, continued by reflection, with vectors along the width. A tile is a few vectors of 16
// neighbouring outputs of a strip. Sums over all positions are split into parts, groups of strips,
// by the sizes of the problem alone, so that results do not depend on the number of threads.

#pragma once

#include <cstdint>

#include "integers.h"
#include "params.h"
#include "workspace.h"

namespace mmrednet {

// Relations of a query and a key, see mmrednet/ops/vector_relations.py.
enum VectorRelation { kSubtraction, kSummation, kHadamard, kConcatenation };

// What a kernel computes: the result; the statistics of features or hidden features; the gradients
// of the one and of the other.
enum VectorMode { kResult, kStatistics, kGradients, kStatisticGradients };

struct VectorParams {
  VectorRelation relation;
  VectorMode mode;
  bool patchwise;
  // whether statistics are those of hidden features, not of features
  bool has_hidden;
  Window window;
  // channels of queries and keys without and with positions; features; hidden features
  int64_t content, channels, features, hidden;
  // outputs of gamma, groups of values, channels of values
  int64_t outputs, groups, value_channels;
  int64_t images, height, width, out_height, out_width;
  Strides query, key, value, grad, result, grad_query;
  // rows of a strip, strips of an image, and parts of all strips
  int64_t strip_rows, image_strips, parts;
  // Packed columns are stored for each tap separately (as im2col does), or in a phase for each
  // remainder of the stride; packed rows likewise. `pitch` is the length of a packed row.
  bool columns_by_tap, rows_by_tap;
  int64_t phase, pitch, packed_rows;
  // vectors of a tile, and taps (pairwise) or features (patchwise) of a chunk of its features
  int64_t vectors, chunk;
  int64_t workspace_bytes;
};

// Parameters of gamma and sums are in the accumulator type. Matrices of hidden features have
// `round_up(hidden)` columns.
struct VectorPointers {
  const void *query, *key, *value, *grad;
  // norm of the features; first layer (hidden, features) with the second norm folded in
  const void *scale1, *shift1, *weight1, *bias1;
  // last layer (outputs, hidden)
  const void *weight2, *bias2;
  // the weights transposed, for the backward pass
  const void *weight1_t, *weight2_t;
  // for gradients of statistics: the gradient of a statistic x is factor * x + offset
  const void *factor, *offset;
  void *result, *grad_query;
  // statistics (strips, features): mean and sum of squared deviations, both float64
  double *means, *deviations;
  // gradients of packed keys and values, a strip every strip_stride() elements
  void *key_strips, *value_strips;
  // sums of each part, see VectorSums
  void* sums;
  // gradients (images, channels, height, width) of keys or values, summed over strips
  void* grad_map;
};

static inline int64_t strip_count(const VectorParams& p) { return p.images * p.image_strips; }

// Elements of the packed rows of a strip.
static inline int64_t strip_elements(const VectorParams& p, int64_t channels) {
  return p.packed_rows * channels * p.pitch;
}

// The distance of the gradients of two strips: zeros are added to up to a vector of elements in
// front of a strip and behind it, which must not meet another thread's sums.
static inline int64_t strip_stride(const VectorParams& p, int64_t channels) {
  return strip_elements(p, channels) + 2 * kSimdWidth;
}

// Where the sums of a part lie, in elements.
struct VectorSums {
  int64_t weight1, shift2, weight2, bias2, scale1, shift1, size;
};

static inline VectorSums vector_sums(const VectorParams& p) {
  const int64_t pitch = round_up(p.hidden);
  VectorSums s = {};
  // (features, hidden), (hidden), (outputs, hidden); the others have a vector of partial sums each
  s.weight1 = 0;
  s.shift2 = s.weight1 + p.features * pitch;
  s.weight2 = s.shift2 + p.hidden * kSimdWidth;
  s.bias2 = s.weight2 + p.outputs * pitch;
  s.scale1 = s.bias2 + p.outputs * kSimdWidth;
  s.shift1 = s.scale1 + p.features * kSimdWidth;
  s.size = s.shift1 + p.features * kSimdWidth;
  return s;
}

// Where the buffers of a thread lie in its workspace, in elements.
struct VectorBuffers {
  int64_t key, value, query, grad, features, hidden, logits, grad_logits, hidden_t, grad_hidden,
      grad_features, output, statistics, taps, size;
};

static inline VectorBuffers vector_buffers(const VectorParams& p) {
  const int64_t taps = num_taps(p.window), columns = p.vectors * kSimdWidth;
  // columns of a chunk and of a tile of features
  const int64_t chunk = p.patchwise ? columns : p.chunk * kSimdWidth;
  const int64_t all = p.patchwise ? columns : taps * kSimdWidth;
  const bool is_backward = p.mode == kGradients || p.mode == kStatisticGradients;
  const bool has_values = p.mode == kResult || p.mode == kGradients;
  VectorBuffers b = {};
  int64_t end = 0;
  const auto take = [&end](int64_t count) {
    const int64_t start = end;
    // a vector behind each buffer may be read
    end += round_up(count) + kSimdWidth;
    return start;
  };
  // and one in front of the first
  take(0);
  b.key = take(strip_elements(p, p.channels));
  b.value = take(has_values ? strip_elements(p, p.value_channels) : 0);
  b.query = take(p.channels * columns);
  b.grad = take(p.mode == kGradients ? p.value_channels * columns : 0);
  const int64_t chunk_features = p.patchwise ? p.chunk : p.features;
  // pairwise, the backward pass keeps the features of all taps
  b.features = take(chunk_features * (is_backward ? all : chunk));
  b.hidden = take(p.hidden * (is_backward ? all : chunk));
  const int64_t logits = p.patchwise ? taps * columns : p.outputs * all;
  b.logits = take(has_values ? logits : 0);
  b.grad_logits = take(p.mode == kGradients ? logits : 0);
  b.hidden_t = take(is_backward ? chunk * round_up(p.hidden) : 0);
  b.grad_hidden = take(is_backward ? p.hidden * chunk : 0);
  b.grad_features = take(is_backward ? chunk_features * chunk : 0);
  b.output = take((has_values ? int_max(p.value_channels, p.channels) : p.channels) * columns);
  const int64_t statistics = p.has_hidden ? p.hidden : p.features;
  b.statistics = take(p.mode == kStatistics ? statistics * (2 * kSimdWidth + 1) : 0);
  // two tables of Offsets, which has an int64 for each lane, in elements of at least four bytes
  b.taps = take(2 * p.vectors * taps * kSimdWidth * 2);
  b.size = end;
  return b;
}

// Packed columns and rows: whichever form is shorter. Only windows that skip most of the map are
// stored by tap.
static inline void set_packing(VectorParams& p) {
  const Window& w = p.window;
  const int64_t phase = p.out_width + (w.kernel_w - 1) * w.dilation_w / w.stride_w;
  // a large stride is excluded first: the product cannot overflow
  p.columns_by_tap = w.stride_w > w.kernel_w || phase * w.stride_w > w.kernel_w * p.out_width;
  if (w.stride_w == 1 && w.dilation_w == 1) p.columns_by_tap = false;
  p.phase = p.columns_by_tap ? p.out_width : phase;
  // channels that are a power of two apart must not share one set of the cache
  p.pitch = (p.phase * (p.columns_by_tap ? w.kernel_w : w.stride_w)) | 1;
}

static inline void set_rows(VectorParams& p, int64_t strip_rows) {
  const Window& w = p.window;
  p.image_strips = ceil_div(p.out_height, int_max(1, strip_rows));
  // strips of about the same number of rows
  p.strip_rows = ceil_div(p.out_height, int_max(1, p.image_strips));
  const int64_t reach = (w.kernel_h - 1) * w.dilation_h;
  const int64_t by_tap = w.kernel_h * p.strip_rows;
  p.rows_by_tap = w.stride_h > by_tap || reach > by_tap;
  const int64_t span = p.rows_by_tap ? 0 : (p.strip_rows - 1) * w.stride_h + reach + 1;
  p.rows_by_tap = p.rows_by_tap || span > by_tap;
  p.packed_rows = p.rows_by_tap ? by_tap : span;
}

static inline void set_strips(VectorParams& p, int64_t element) {
  // Outputs of a strip, at least: with few, the last vector of a strip is mostly empty.
  constexpr int64_t kMinOutputs = 64;
  // Rows of a strip, at most: packed rows then stay in the second-level cache. Rows that two strips
  // look at are packed twice, which costs little beside gamma.
  constexpr int64_t kMaxRows = 8;
  // Parts of sums over all positions: enough to keep many threads busy. Each has its own sums of
  // the gradients of the weights.
  constexpr int64_t kParts = 16;
  // Vectors of a tile: pairwise, the columns of a product are taps times outputs, and three taps
  // fill the registers. Patchwise, they are outputs alone.
  constexpr int64_t kVectors = 3;
  // Features of a chunk, patchwise: with 48 outputs they take 24 KiB.
  constexpr int64_t kChunk = 128;
  set_packing(p);
  const bool is_backward = p.mode == kGradients || p.mode == kStatisticGradients;
  int64_t rows = int_max(1, int_min(kMaxRows, p.out_height / 32));
  if (is_backward) rows = ceil_div(p.out_height * int_max(1, p.images), kParts);
  set_rows(p, int_max(rows, ceil_div(kMinOutputs, int_max(1, p.out_width))));
  p.parts = int_max(1, int_min(kParts, strip_count(p)));
  p.vectors = p.patchwise ? kVectors : 1;
  p.chunk = p.patchwise ? ceil_div(kChunk, p.channels) * p.channels : kVectors;
  p.workspace_bytes = vector_buffers(p).size * element;
}

}  // namespace mmrednet
