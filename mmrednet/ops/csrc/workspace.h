// How the work is cut into tiles, and how much memory a thread needs for it.
//
// Sizes in bytes depend on `element`, the size of the accumulator type.

#pragma once

#include <cstdint>

#include "integers.h"
#include "params.h"

namespace mmrednet {

static inline int64_t num_taps(const Window& window) { return window.kernel_h * window.kernel_w; }

// Rows of the feature map that one row of outputs needs: the slots of a ring buffer of packed rows.
static inline int64_t ring_slots(const LocalParams& p) {
  const int64_t span = (p.window.kernel_h - 1) * p.window.dilation_h + 1;
  return int_min(span, int_max(p.height, 1));
}

// With a horizontal stride s, a packed row holds s phases: phase r has the columns r, r + s, r + 2s
// and so on, so that neighbouring outputs read neighbouring elements. This is the length of one.
static inline int64_t phase_length(const LocalParams& p) {
  const int64_t reach = (p.window.kernel_w - 1) * p.window.dilation_w;
  return round_up(p.out_width) + reach / p.window.stride_w + 1;
}

// Whether a packed row stores the columns of each tap separately (as im2col does) instead of in
// phases. Taps then share nothing, but the length is that of taps times outputs. It is the shorter
// form where the window skips most of the feature map, by a large stride or a large dilation.
static inline bool packs_by_tap(const LocalParams& p) {
  const Window& window = p.window;
  if (window.shifted) return false;
  if (window.stride_w > window.kernel_w) return true;
  const int64_t by_phase = phase_length(p) * window.stride_w;
  return window.kernel_w > 1 && by_phase > window.kernel_w * round_up(p.out_width);
}

// Elements of a packed row of one channel.
static inline int64_t packed_row_length(const LocalParams& p) {
  if (packs_by_tap(p)) return p.window.kernel_w * round_up(p.out_width);
  return phase_length(p) * p.window.stride_w;
}

// Size of the packed rows of one group: the address of the group, the row that each slot holds, and
// the rows. Rounded up to a cache line, so that the next group starts on a line of its own.
static inline int64_t packed_rows_bytes(const LocalParams& p, int64_t element) {
  constexpr int64_t kCacheLine = 64;
  const int64_t elements = ring_slots(p) * p.channels * packed_row_length(p);
  const int64_t header = (ring_slots(p) + 1) * static_cast<int64_t>(sizeof(int64_t));
  return ceil_div(elements * element + header, kCacheLine) * kCacheLine;
}

// How many groups have their packed rows in the workspace at the same time.
//
// In a channels-last map the groups of a pixel are neighbours in memory. Packing the same row of
// all groups, one after another, reads whole cache lines. This pays only if the packed rows stay in
// the second-level cache, and if a thread has several times more rows to compute than to pack: the
// first rows of every thread's share are packed by its neighbour too.
static inline int64_t cached_groups(const LocalParams& p, const Strides& map, int64_t element) {
  constexpr int64_t kLevel2Cache = 1 << 21;
  const bool interleaved = map.w != 1;
  if (!interleaved || p.result_rows < 4 * ring_slots(p)) return 1;
  return p.groups * packed_rows_bytes(p, element) <= kLevel2Cache ? p.groups : 1;
}

// The longest kernel axis that the scatter for channels-last maps takes: it lists the taps that
// reach a position in arrays of this length.
constexpr int64_t kMaxListedTaps = 64;

// Whether a feature map is channels-last and the kernel can read it in place, without packing.
static inline bool runs_channels_last(const LocalParams& p) {
  if (p.primitive == kCorrelate) return false;
  const bool channels_last = p.first.c == 1 && p.first.w != 1 && p.result.c == 1;
  // half a window more outputs see a position by a shifted window
  const int64_t most_taps = p.window.shifted ? kMaxListedTaps / 2 : kMaxListedTaps;
  const bool taps_listed = p.window.kernel_h <= most_taps && p.window.kernel_w <= most_taps;
  return channels_last && (p.primitive == kAggregate || taps_listed);
}

// A scatter with stride 1 is an aggregate of the gradient with the taps in reverse order, as a
// transposed convolution is a convolution with a flipped kernel. These are its parameters.
static inline LocalParams flip(const LocalParams& p) {
  LocalParams flipped = p;
  const Window& window = p.window;
  flipped.window.padding_h = (window.kernel_h - 1) * window.dilation_h - window.padding_h;
  flipped.window.padding_w = (window.kernel_w - 1) * window.dilation_w - window.padding_w;
  flipped.height = p.out_height;
  flipped.width = p.out_width;
  flipped.out_height = p.height;
  flipped.out_width = p.width;
  return flipped;
}

// Whether a scatter may run as flip(). The padding must stay non-negative. The window's reach is
// limited, because the address of a tap outside the map is computed (not read) and must not
// overflow. Rows packed by tap are excluded: the weights are packed like the gradient, and have to
// lie in phases.
static inline bool can_flip(const LocalParams& p) {
  constexpr int64_t kMaxReach = 1 << 24;
  const Window& window = p.window;
  const int64_t reach_h = (window.kernel_h - 1) * window.dilation_h;
  const int64_t reach_w = (window.kernel_w - 1) * window.dilation_w;
  if (window.shifted || window.stride_h != 1 || window.stride_w != 1) return false;
  if (window.padding_h > reach_h || window.padding_w > reach_w) return false;
  return reach_h < kMaxReach && reach_w < kMaxReach && !packs_by_tap(flip(p));
}

// The workspace of a primitive: packed rows, and behind them one row of outputs of
//   aggregate          the weights of all taps
//   correlate          the query and the logits of all taps
//   scatter, flipped   the weights of all taps, as long as a packed row
//   scatter            the sums
// The map of channels-last ones is read in place, and weights of one row may be packed in pairs.
static inline int64_t workspace_bytes(const LocalParams& p, int64_t element) {
  const int64_t taps = num_taps(p.window);
  // weights in pairs
  if (runs_channels_last(p)) return (taps + 1) * round_up(int_max(p.width, p.out_width)) * element;
  if (p.primitive == kScatter && can_flip(p)) {
    const LocalParams flipped = flip(p);
    return p.cached_groups * packed_rows_bytes(flipped, element) +
           taps * packed_row_length(flipped) * element;
  }
  if (p.primitive == kScatter) return p.channels * p.width * element;
  const int64_t rows = p.primitive == kAggregate ? taps : p.channels + taps;
  return p.cached_groups * packed_rows_bytes(p, element) + rows * round_up(p.out_width) * element;
}

// Outputs of a tile that is not a row of the map: three SIMD vectors, as many as small_gemm.h
// computes at a time. The kernels of a 7x7 involution then take 9 KiB and stay in the first-level
// cache.
constexpr int64_t kTileOutputs = 3 * kSimdWidth;

static inline void set_tiles(InvolutionParams& p, int64_t tile_size, bool channels_last,
                             int64_t element) {
  const int64_t taps = num_taps(p.local.window);
  p.channels_last = channels_last;
  p.tile_size = tile_size;
  p.tile_pitch = round_up(tile_size);
  p.tiles = ceil_div(p.local.out_height * p.local.out_width, tile_size);
  const int64_t tile_elements = (p.hidden_channels + taps) * p.tile_pitch;
  const int64_t weight_elements = taps * (p.hidden_channels + 1);
  p.workspace_bytes = (tile_elements + weight_elements) * element;
}

// Tiles of involution: some neighbouring outputs of a channels-last map, or a row of any other map.
static inline void set_tiles(InvolutionParams& p, int64_t element) {
  const bool channels_last = runs_channels_last(p.local);
  set_tiles(p, channels_last ? kTileOutputs : p.local.out_width, channels_last, element);
  if (!channels_last) p.workspace_bytes += packed_rows_bytes(p.local, element);
}

// Tiles where kernels are only stored. No feature map is read, so its layout does not matter.
static inline void set_flat_tiles(InvolutionParams& p, int64_t element) {
  set_tiles(p, kTileOutputs, true, element);
}

// Tiles, chunks and blocks of the backward pass of involution.
static inline void set_parts(InvolutionBackwardParams& p, int64_t images, int64_t element) {
  // Outputs of a tile. Seven SIMD vectors are also whole rows of maps that are 56, 28, 14 or 7
  // wide, and the 49 gradients of a 7x7 kernel take 21 KiB.
  constexpr int64_t kOutputs = 112;
  // Outputs of a chunk, at least: clearing its sums and adding them up then costs little.
  constexpr int64_t kMinChunkOutputs = 512;
  // Parts of the work, chunks times blocks: enough to keep many threads busy.
  constexpr int64_t kParts = 32;
  // Each block needs a copy of the gradient of the hidden features, so there are few.
  constexpr int64_t kMaxBlocks = 8;

  const LocalParams& local = p.local;
  p.tile_rows = int_max(1, int_min(kOutputs / local.out_width, local.out_height));
  // the last row of a tile is computed in whole vectors
  p.tile_pitch = round_up((p.tile_rows - 1) * local.out_width + round_up(local.out_width));
  p.image_tiles = ceil_div(local.out_height, p.tile_rows);
  p.tiles = images * p.image_tiles;

  const int64_t tile_outputs = p.tile_rows * local.out_width;
  p.chunk_tiles = int_max(ceil_div(kMinChunkOutputs, tile_outputs), ceil_div(p.tiles, kParts));
  p.chunks = ceil_div(p.tiles, p.chunk_tiles);
  p.block_groups = ceil_div(local.groups, int_min(ceil_div(kParts, p.chunks), kMaxBlocks));
  p.blocks = ceil_div(local.groups, p.block_groups);

  const int64_t tile_elements = (local.channels + num_taps(local.window)) * p.tile_pitch;
  p.workspace_bytes = packed_rows_bytes(local, element) + tile_elements * element;
}

// Elements of the bias of one head: one for each tap; where windows are shifted, for each tap and
// each place of an output in its window.
static inline int64_t bias_elements(const Window& window) {
  return num_taps(window) * (window.shifted ? num_taps(window) : 1);
}

// Elements of the tables of one head: of the embeddings of rows and columns, and of the bias.
static inline int64_t table_elements(const LocalParams& keys) {
  const Window& window = keys.window;
  return (window.kernel_h + window.kernel_w) * (keys.channels / 2) + bias_elements(window);
}

// The workspace of local attention: packed rows of keys and values, and behind them, for one row of
// outputs, query, gradient of the result, the terms of row and column, and the mask; for 16 of its
// outputs bias, logits, weights and gradients of both, the gradient of the query and sums for the
// tables;
// and the tables in pairs.
static inline int64_t workspace_bytes(const AttentionParams& p, int64_t element) {
  const LocalParams &keys = p.keys, &values = p.values;
  const Window& window = keys.window;
  const int64_t rows = keys.channels + values.channels + window.kernel_h + 2 * window.kernel_w;
  // a pair may need one row or channel more
  const int64_t lines = window.kernel_h + window.kernel_w, half = keys.channels / 2;
  const int64_t vectors = 5 * num_taps(window) + keys.channels + 1 + lines * half;
  const int64_t tables = keys.groups * lines * (half + 1);
  const int64_t packed = packed_rows_bytes(keys, element) + packed_rows_bytes(values, element);
  return keys.cached_groups * packed +
         (rows * round_up(keys.out_width) + vectors * kSimdWidth + tables) * element;
}

}  // namespace mmrednet
