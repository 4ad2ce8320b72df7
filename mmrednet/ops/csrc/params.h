// What a kernel is told: sizes, strides and the geometry of the window. No header of torch, no
// inline function that another file might share: kernels.h is compiled for several instruction
// sets.

#pragma once

#include <cstdint>

namespace mmrednet {

enum Kind { kAggregate, kCorrelate, kScatter };

// strides in elements: batch, group, channel or tap, row, column
struct View {
  int64_t b, g, c, h, w;
};

struct Geometry {
  int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, padding_h, padding_w;
};

struct Problem {
  Kind kind;
  Geometry geometry;
  // value and weight, query and key, or grad and weight; channels are those of a group
  View first, second, result;
  int64_t groups, channels;
  // of the map, and of the outputs
  int64_t height, width, out_height, out_width;
  // rows of the result, groups whose rows are held at once, and bytes of memory that a thread needs
  int64_t lines, held, scratch;
};

static inline int64_t divided(int64_t number, int64_t by) { return (number + by - 1) / by; }

// outputs are computed in sixteens
static inline int64_t padded(int64_t width) { return divided(width, 16) * 16; }

// how many rows of the map one row of outputs spans
static inline int64_t slots(const Problem& p) {
  const int64_t span = (p.geometry.kernel_h - 1) * p.geometry.dilation_h + 1;
  const int64_t rows = p.height > 0 ? p.height : 1;
  return span < rows ? span : rows;
}

// how many columns of the map all outputs of a row see whose distance is a multiple of the stride
static inline int64_t phase_length(const Problem& p) {
  return padded(p.out_width) +
         (p.geometry.kernel_w - 1) * p.geometry.dilation_w / p.geometry.stride_w + 1;
}

// Whether a packed line keeps what the outputs see tap by tap, for windows that leave most of the
// map out: it is then as long as the taps and outputs of a row, whatever the stride and the
// dilation.
static inline bool by_tap(const Problem& p) {
  const Geometry& g = p.geometry;
  return g.stride_w > g.kernel_w ||
         (g.kernel_w > 1 && phase_length(p) * g.stride_w > g.kernel_w * padded(p.out_width));
}

// numbers of a packed line
static inline int64_t line_length(const Problem& p) {
  return by_tap(p) ? p.geometry.kernel_w * padded(p.out_width)
                   : phase_length(p) * p.geometry.stride_w;
}

// of the packed rows of one group, of the number of the row that each slot holds, and of the
// group's address
static inline int64_t rows_bytes(const Problem& p, int64_t number) {
  const int64_t numbers = slots(p) * p.channels * line_length(p);
  return (numbers * number + (slots(p) + 1) * static_cast<int64_t>(sizeof(int64_t)) + 63) / 64 * 64;
}

// How many groups' rows are held at once. Where the groups of a pixel lie together, going through
// them row by row reads whole cache lines; a map of few rows would have most of them packed by
// every thread.
static inline int64_t held_groups(const Problem& p, const View& v, int64_t number) {
  constexpr int64_t kMost = 1 << 21;
  const bool together =
      v.w != 1 && p.lines >= 4 * slots(p) && p.groups * rows_bytes(p, number) <= kMost;
  return together ? p.groups : 1;
}

// the longest kernel whose taps are listed one by one
constexpr int64_t kMaxTaps = 64;

// a channels-last map, and a kernel that needs no copy of it
static inline bool by_pixels(const Problem& p) {
  return p.kind != kCorrelate && p.first.c == 1 && p.first.w != 1 && p.result.c == 1 &&
         (p.kind == kAggregate ||
          (p.geometry.kernel_h <= kMaxTaps && p.geometry.kernel_w <= kMaxTaps));
}

// the map looks at the outputs through the same taps in reverse order
static inline Problem flipped(const Problem& p) {
  Problem f = p;
  f.geometry.padding_h = (p.geometry.kernel_h - 1) * p.geometry.dilation_h - p.geometry.padding_h;
  f.geometry.padding_w = (p.geometry.kernel_w - 1) * p.geometry.dilation_w - p.geometry.padding_w;
  f.height = p.out_height, f.width = p.out_width;
  f.out_height = p.height, f.out_width = p.width;
  return f;
}

// Whether a scatter is the aggregate of flipped(). Its weights move with the gradient, which lines
// by tap do not let them; and a tap so far away that its offset in memory might not be a number is
// none to look through.
static inline bool can_flip(const Problem& p) {
  constexpr int64_t kFar = 1 << 24;
  const Geometry& g = p.geometry;
  const int64_t reach_h = (g.kernel_h - 1) * g.dilation_h,
                reach_w = (g.kernel_w - 1) * g.dilation_w;
  return g.stride_h == 1 && g.stride_w == 1 && g.padding_h <= reach_h && g.padding_w <= reach_w &&
         reach_h < kFar && reach_w < kFar && !by_tap(flipped(p));
}

// rows of weights or of queries and logits beside the packed rows, or rows of sums
static inline int64_t scratch_bytes(const Problem& p, int64_t number) {
  if (by_pixels(p)) return 0;
  const int64_t taps = p.geometry.kernel_h * p.geometry.kernel_w;
  if (p.kind == kScatter && can_flip(p)) {
    const Problem f = flipped(p);
    return p.held * rows_bytes(f, number) + taps * line_length(f) * number;
  }
  if (p.kind == kScatter) return p.channels * p.width * number;
  const int64_t lines = p.kind == kAggregate ? taps : p.channels + taps;
  return p.held * rows_bytes(p, number) + lines * padded(p.out_width) * number;
}

// involution with its kernel generation inside
struct Involution {
  Problem local;
  // strides of the hidden features; their number; the bytes of memory that a thread needs
  View seen;
  int64_t hidden, scratch;
  // whether `local` is read where it is; outputs of a tile, those computed for it, and tiles of an
  // image
  bool pixels;
  int64_t size, pitch, tiles;
};

// `weight` and `bias` generate the kernels. `scale` and `shift`, one for each channel in the type
// of sums, or null: the results are scaled, then shifted, and then no less than zero where that is
// wanted.
struct InvolutionData {
  const void *value, *hidden, *weight, *bias, *scale, *shift;
  bool relu;
  void* result;
};

// outputs of a tile that is no row of the map
constexpr int64_t kTile = 48;

static inline void set_tiles(Involution& q, int64_t size, bool pixels, int64_t number) {
  const Problem& p = q.local;
  const int64_t taps = p.geometry.kernel_h * p.geometry.kernel_w;
  q.pixels = pixels;
  q.size = size;
  q.pitch = padded(size);
  q.tiles = divided(p.out_height * p.out_width, size);
  q.scratch = ((q.hidden + taps) * q.pitch + taps * (q.hidden + 1)) * number;
}

static inline void set_tiles(Involution& q, int64_t number) {
  const bool pixels = by_pixels(q.local);
  set_tiles(q, pixels ? kTile : q.local.out_width, pixels, number);
  if (!pixels) q.scratch += rows_bytes(q.local, number);
}

// where kernels are stored, and no map is read
static inline void set_flat_tiles(Involution& q, int64_t number) {
  set_tiles(q, kTile, true, number);
}

// The gradients of what generates involution's kernels, whose own gradients are correlates of grad
// and value. A tile is some rows of one image. Sums are shared out by the sizes of the problem,
// never by the number of threads: chunks of tiles have the gradient of the weight in parts, blocks
// of groups that of the hidden features.
struct Generated {
  Problem local;
  View seen;
  int64_t hidden, scratch;
  // rows of a tile, length of a line, tiles of an image and of all images
  int64_t rows, pitch, tiles, all;
  // tiles of a chunk, chunks, groups of a block, blocks
  int64_t chunk, chunks, block, blocks;
};

// In the type of sums: features (images, outputs, padded(hidden)), weight (groups, hidden, taps),
// and what is made: weight_sums (chunks, groups, taps, padded(hidden)), bias_sums (chunks, groups,
// taps), hidden_sums (blocks, all, hidden, pitch), of which the first block is the sum of all in
// the end.
struct GeneratedData {
  const void *grad, *value, *features, *weight;
  void *weight_sums, *bias_sums, *hidden_sums, *grad_hidden;
};

static inline void set_parts(Generated& q, int64_t images, int64_t number) {
  // outputs of a tile, and of a chunk, in which adding to a part costs little; and parts, enough
  // for many threads
  constexpr int64_t kOutputs = 112, kLeast = 512, kParts = 32, kMostBlocks = 8;
  const Problem& p = q.local;
  q.rows = kOutputs / p.out_width < 1              ? 1
           : kOutputs / p.out_width < p.out_height ? kOutputs / p.out_width
                                                   : p.out_height;
  q.pitch = padded((q.rows - 1) * p.out_width + padded(p.out_width));
  q.tiles = divided(p.out_height, q.rows);
  q.all = images * q.tiles;
  const int64_t outputs = q.rows * p.out_width, least = divided(kLeast, outputs),
                even = divided(q.all, kParts);
  q.chunk = least > even ? least : even;
  q.chunks = divided(q.all, q.chunk);
  const int64_t wanted = divided(kParts, q.chunks);
  q.block = divided(p.groups, wanted < kMostBlocks ? wanted : kMostBlocks);
  q.blocks = divided(p.groups, q.block);
  q.scratch = rows_bytes(p, number) +
              (p.channels + p.geometry.kernel_h * p.geometry.kernel_w) * q.pitch * number;
}

// local attention: a correlate, a softmax and an aggregate of one geometry; `taps` is how weights
// and their gradients lie
struct Attention {
  Problem keys, values;
  View grad, taps;
  int64_t scratch;
  // whether weights and gradients of logits are wanted in place of the result
  bool backward;
};

// Tables in the type in which sums are taken, or null: rows (heads, kernel_h, channels / 2),
// columns alike, bias (heads, taps). What is wanted is either the result, in the type of the
// values, and logsumexp (images, heads, out_height, out_width) in that of sums, or, from the
// gradient of the result, the weights and the gradients of the logits in that of sums. Tensors
// without elements may have null for an address.
struct AttentionData {
  const void *query, *key, *value, *rows, *columns, *bias, *grad;
  void *result, *logsumexp, *weight, *grad_logits;
};

static inline int64_t scratch_bytes(const Attention& q, int64_t number) {
  const Geometry& g = q.keys.geometry;
  const int64_t lines = q.keys.channels + q.values.channels + 2 * g.kernel_h * g.kernel_w +
                        g.kernel_h + 2 * g.kernel_w;
  return q.keys.held * (rows_bytes(q.keys, number) + rows_bytes(q.values, number)) +
         lines * padded(q.keys.out_width) * number;
}

using Run = void (*)(const Problem&, const void*, const void*, void*, void*, int64_t, int64_t);
using RunInvolution = void (*)(const Involution&, const InvolutionData&, void*, int64_t, int64_t);
using StoreKernels = void (*)(const Involution&, const InvolutionData&, void*, void*, int64_t,
                              int64_t);
using RunGenerated = void (*)(const Generated&, const GeneratedData&, void*, int64_t, int64_t);
using StoreGenerated = void (*)(const Generated&, const GeneratedData&, int64_t, int64_t);
using RunAttention = void (*)(const Attention&, const AttentionData&, void*, int64_t, int64_t);

// the kernels of one instruction set for one type of numbers
struct Typed {
  Run local;
  RunInvolution involution;
  StoreKernels store_kernels;
  RunGenerated kernel_gradients;
  StoreGenerated hidden_gradients;
  RunAttention attention;
};

struct Kernels {
  const char* name;
  Typed float_, double_, bfloat16;
};

}  // namespace mmrednet
