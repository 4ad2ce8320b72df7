// The parameters of the kernels: sizes, strides, windows and pointers.
//
// This header is shared by the files that know torch and by the kernels, which are compiled for
// several instruction sets. It therefore includes no header of torch and defines no function.

#pragma once

#include <cstdint>

namespace mmrednet {

enum Primitive { kAggregate, kCorrelate, kScatter };

// Strides of a five-dimensional tensor, in elements: batch, group, channel or tap, row, column.
struct Strides {
  int64_t b, g, c, h, w;
};

struct Window {
  int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, padding_h, padding_w;
  // Whether windows at the border are moved inwards, onto the map. They have stride and dilation 1
  // and are centred.
  bool shifted;
};

// One primitive, see mmrednet/ops/local.py.
struct LocalParams {
  Primitive primitive;
  Window window;
  // operands: value and weight (aggregate), query and key (correlate), grad and weight (scatter)
  Strides first, second, result;
  // number of groups, and channels of each group
  int64_t groups, channels;
  // size of the feature map that the window slides over, and of the outputs
  int64_t height, width, out_height, out_width;
  // rows of the result; a row of one group of one image is the unit of work
  int64_t result_rows;
  // how many groups have their packed rows in the workspace at the same time
  int64_t cached_groups;
  // size of the workspace of one thread
  int64_t workspace_bytes;
};

struct LocalPointers {
  const void *first, *second;
  void* result;
};

// Involution with its kernel generation fused, see mmrednet/ops/involution.py.
struct InvolutionParams {
  LocalParams local;
  Strides hidden_strides;
  int64_t hidden_channels, workspace_bytes;
  // whether the feature map is channels-last and is read in place
  bool channels_last;
  // outputs of a tile, pitch of its rows in the workspace, and tiles of an image
  int64_t tile_size, tile_pitch, tiles;
};

struct InvolutionPointers {
  // weight (groups * taps, hidden channels) and bias (groups * taps) generate the kernels
  const void *value, *hidden, *weight, *bias;
  // per channel, in the accumulator type, or null: result * scale + shift, then ReLU if `relu`
  const void *scale, *shift;
  bool relu;
  void* result;
};

// The gradients of hidden features, weight and bias of involution. The gradient of the kernels is
// the correlation of grad and value. A tile is some rows of one image.
//
// The sums are split into parts by the sizes of the problem, never by the number of threads, so
// that results do not depend on it. Each chunk of tiles has its own sum for the weight and the
// bias, and each block of groups its own sum for the hidden features.
struct InvolutionBackwardParams {
  LocalParams local;
  Strides hidden_strides;
  int64_t hidden_channels, workspace_bytes;
  // rows of a tile, pitch of a tile in the workspace, tiles of an image, and of all images
  int64_t tile_rows, tile_pitch, image_tiles, tiles;
  // tiles of a chunk, number of chunks, groups of a block, number of blocks
  int64_t chunk_tiles, chunks, block_groups, blocks;
};

// All but grad, value and grad_hidden are in the accumulator type. `pitch` is the number of hidden
// channels, rounded up to the SIMD width.
struct InvolutionBackwardPointers {
  // features (images, outputs, pitch) and weight (groups, hidden channels, taps)
  const void *grad, *value, *features, *weight;
  // (chunks, groups, taps, pitch)
  void* weight_sums;
  // (chunks, groups, taps)
  void* bias_sums;
  // (blocks, tiles, hidden channels, tile_pitch); in the end the first block is the sum of all
  void* hidden_sums;
  void* grad_hidden;
};

// What a query and a key give: the sum of their products, or minus the sum of the absolute
// differences.
enum Relation { kProduct, kAbsoluteDifference };

// Local attention: logits, a softmax and an aggregate over the same window.
struct AttentionParams {
  Relation relation;
  LocalParams keys, values;
  int64_t workspace_bytes;
  // The rest is for the backward pass. A band of rows of one head of one image is its unit of work,
  // and has its own sums for the gradients of the tables: results do not depend on the number of
  // threads.
  int64_t band_rows, bands;
  // strides of the gradients of the result and of the query
  Strides grad, grad_query;
};

// Tensors without elements may have a null pointer.
struct AttentionPointers {
  const void *query, *key, *value;
  // tables in the accumulator type, or null: rows (heads, kernel_h, channels / 2), columns (heads,
  // kernel_w, channels / 2) and bias (heads, taps), or (heads, places, taps) where windows are
  // shifted: an output has the place of its window that it stands at
  const void *rows, *columns, *bias;
  // outputs of the forward pass; logsumexp is in the accumulator type, or null
  void *result, *logsumexp;
  // gradient of the result, for the backward pass
  const void* grad;
  // outputs of the backward pass: the gradient of the query; what is to be scattered to values and
  // to keys, (heads, taps, outputs) and (heads, planes, taps, outputs), with one plane for products
  // and one for each channel for absolute differences; and the gradients of rows, columns and bias
  // in the accumulator type, (heads, bands, table_elements())
  void *grad_query, *weight, *grad_logits, *table_sums;
};

}  // namespace mmrednet
