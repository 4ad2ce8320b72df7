// The parameters of depth-wise convolution. Like params.h, this header knows no torch.

#pragma once

#include <cstdint>

#include "params.h"

namespace mmrednet {

// Depth-wise convolution of stride 1, see mmrednet/ops/depthwise.py. Channels are taken in blocks
// of one SIMD vector. An item of work is some rows (a band) of some blocks (a chunk) of one image.
struct DepthwiseParams {
  Window window;
  // without groups
  Strides map, outputs;
  int64_t images, channels, height, width, out_height, out_width;
  // whether GELU follows
  bool gelu;
  int64_t blocks, chunk_blocks, chunks, band_rows, bands;
  // rows of a block that the workspace holds, and positions of each
  int64_t slots, pitch;
  int64_t workspace_bytes;
};

// Weights, bias and sums are in the accumulator type.
struct DepthwisePointers {
  const void* map;
  // weight (blocks, taps, 16) and bias (blocks, 16)
  const void *weight, *bias;
  // result of the forward pass
  void* result;
};

struct DepthwiseBackwardPointers {
  DepthwisePointers forward;
  // gradient of the result; that of the convolution is written if GELU follows it
  const void* grad;
  void* grad_convolution;
  // gradients of weights, and of the bias as the last tap: (images, bands, blocks, taps + 1, 16)
  void* sums;
};

// The last arguments are the workspace of the thread and the range of work items.
using DepthwiseKernel = void (*)(const DepthwiseParams&, const DepthwisePointers&, void*, int64_t,
                                 int64_t);
using DepthwiseGradients = void (*)(const DepthwiseParams&, const DepthwiseBackwardPointers&, void*,
                                    int64_t, int64_t);

}  // namespace mmrednet
