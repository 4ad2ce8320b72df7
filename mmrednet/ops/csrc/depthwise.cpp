// Depth-wise convolution for the CPU: see mmrednet/ops/depthwise.py.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>

#include "depthwise_params.h"
#include "integers.h"
#include "kernel_table.h"
#include "native.h"
#include "operators.h"
#include "params.h"
#include "torch_functions.h"
#include "workspace.h"

namespace mmrednet {

namespace {

using OptionalTensor = std::optional<at::Tensor>;

// Strides of (B, C, H, W), which has no groups.
Strides map_strides(const at::Tensor& tensor) {
  return {tensor.stride(0), 0, tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

// A vector that lies in two cache lines takes twice the time to load.
constexpr int64_t kCacheLine = 64;

void* aligned(void* memory) {
  const auto address = reinterpret_cast<uintptr_t>(memory);
  return reinterpret_cast<void*>((address + kCacheLine - 1) / kCacheLine * kCacheLine);
}

// Splits the work. The split does not depend on the number of threads, because each item has its
// own sums for the weights.
void set_items(DepthwiseParams& p, int64_t element) {
  // a part of the second-level cache, which also takes the rows of the map and of the result
  constexpr int64_t kCacheBytes = 128 * 1024;
  // enough for many cores; a band packs again some rows of the one before, and should not be lower
  constexpr int64_t kItems = 32, kMinBandRows = 8;
  // outputs that are computed together, in every instruction set
  constexpr int64_t kOutputs = 8;
  const Window& window = p.window;
  const int64_t span = window.dilation_h * (window.kernel_h - 1) + 1;
  p.slots = int_min(span, p.height);
  p.pitch = int_max(
      ceil_div(p.out_width, kOutputs) * kOutputs + window.dilation_w * (window.kernel_w - 1),
      p.width + window.padding_w);
  p.blocks = ceil_div(p.channels, kSimdWidth);
  const int64_t block_bytes = p.slots * p.pitch * kSimdWidth * element;
  const int64_t fitting = int_min(int_max(1, kCacheBytes / block_bytes), p.blocks);
  p.chunks = ceil_div(p.blocks, fitting);
  p.chunk_blocks = ceil_div(p.blocks, p.chunks);
  p.chunks = ceil_div(p.blocks, p.chunk_blocks);
  const int64_t bands =
      int_min(ceil_div(kItems, p.images * p.chunks), ceil_div(p.out_height, kMinBandRows));
  p.band_rows = ceil_div(p.out_height, bands);
  p.bands = ceil_div(p.out_height, p.band_rows);
  const int64_t row_bytes = ceil_div(p.out_width, kOutputs) * kOutputs * kSimdWidth * element;
  p.workspace_bytes = p.chunk_blocks * block_bytes + row_bytes;
}

// Returns (blocks, rows, 16) of (channels, rows), with zeros for missing channels.
at::Tensor to_blocks(const at::Tensor& tensor, at::ScalarType type) {
  const int64_t channels = tensor.size(0), missing = round_up(channels) - channels;
  const at::Tensor padded = padded_rows(tensor.to(type), missing);
  return padded.view({padded.size(0) / kSimdWidth, kSimdWidth, tensor.size(1)})
      .transpose(1, 2)
      .contiguous();
}

// The way back, of (blocks, rows, 16).
at::Tensor from_blocks(const at::Tensor& blocks, int64_t channels) {
  const at::Tensor matrix = blocks.transpose(1, 2).reshape({round_up(channels), blocks.size(1)});
  return matrix.slice(0, 0, channels);
}

// A convolution: its map and weights in the dtype of the kernels, and its parameters.
struct DepthwiseCall {
  at::ScalarType type, accumulator;
  at::Tensor map, weight, bias;
  DepthwiseParams params = {};
  DepthwisePointers pointers = {};

  DepthwiseCall(const at::Tensor& x, const at::Tensor& kernels, const OptionalTensor& bias_or_none,
                at::IntArrayRef padding, at::IntArrayRef dilation, bool gelu) {
    TORCH_CHECK_VALUE(x.dim() == 4 && kernels.dim() == 4,
                      "x and weight must have 4 dimensions, got ", x.sizes(), " and ",
                      kernels.sizes());
    TORCH_CHECK_VALUE(padding.size() == 2 && dilation.size() == 2,
                      "padding and dilation must have 2 numbers, got ", padding, " and ", dilation);
    const int64_t channels = x.size(1), kernel_h = kernels.size(2), kernel_w = kernels.size(3);
    check_sizes("weight", kernels, {channels, 1, kernel_h, kernel_w});
    if (bias_or_none) check_sizes("bias", *bias_or_none, {channels});
    type = kernel_type(x.scalar_type(), kernels.scalar_type());
    accumulator = accumulator_type(type);
    map = x.to(type);
    params.window =
        to_window({kernel_h, kernel_w, 1, 1, dilation[0], dilation[1], padding[0], padding[1]});
    params.gelu = gelu;
    check_reach();
    set_sizes();
  }

  // Sets the pointers to what the kernels read.
  void pack(const at::Tensor& kernels, const OptionalTensor& bias_or_none) {
    weight = to_blocks(kernels.flatten(1), accumulator);
    const OptionalTensor column = bias_or_none ? bias_or_none->unsqueeze(1) : bias_or_none;
    bias = to_blocks(column ? *column : new_zeros({params.channels, 1}), accumulator);
    pointers.map = map.const_data_ptr();
    pointers.weight = weight.const_data_ptr();
    pointers.bias = bias.const_data_ptr();
  }

  // Checks that packed rows stay small, and that the gradient of the map has a padding.
  void check_reach() const {
    constexpr int64_t kMaxReach = 65536;
    const Window& window = params.window;
    const int64_t reach_h = window.dilation_h * (window.kernel_h - 1);
    const int64_t reach_w = window.dilation_w * (window.kernel_w - 1);
    TORCH_CHECK_VALUE(reach_h <= kMaxReach && reach_w <= kMaxReach,
                      "the kernel must reach at most ", kMaxReach, " positions, got ", reach_h,
                      " and ", reach_w);
    TORCH_CHECK_VALUE(window.padding_h <= reach_h && window.padding_w <= reach_w,
                      "padding must be at most dilation * (kernel - 1)");
  }

  void set_sizes() {
    const auto outputs = output_size(params.window, map.sizes().slice(2));
    params.map = map_strides(map);
    params.images = map.size(0);
    params.channels = map.size(1);
    params.height = map.size(2);
    params.width = map.size(3);
    params.out_height = outputs[0];
    params.out_width = outputs[1];
  }

  at::Tensor empty_outputs() const {
    return empty_in_layout_of(
        map, {params.images, params.channels, params.out_height, params.out_width});
  }

  // Whether there is nothing to compute.
  bool is_empty() const {
    return map.numel() == 0 || params.out_height == 0 || params.out_width == 0;
  }

  // Calls `kernel` with a workspace and a range of items, for all items.
  template <typename Kernel>
  void for_items(Kernel kernel) const {
    const int64_t items = params.images * params.bands * params.chunks;
    const int64_t positions = params.band_rows * params.out_width;
    const int64_t work = positions * params.chunk_blocks * kSimdWidth * num_taps(params.window);
    at::parallel_for(0, items, grain_size(work), [&](int64_t begin, int64_t end) {
      std::unique_ptr<char[]> workspace(new char[params.workspace_bytes + kCacheLine]);
      kernel(aligned(workspace.get()), begin, end);
    });
  }
};

// Whether oneDNN's convolution, which torch calls, is faster. The kernels here win by GELU, by a
// dilation, and on contiguous maps, which oneDNN copies to another layout and back. In bfloat16
// oneDNN does not return from some kernels, such as 1 x 21 on 16 channels of 4 x 33.
bool takes_torch(const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef dilation,
                 bool gelu) {
  const bool is_float = x.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat;
  return is_float && !gelu && dilation[0] == 1 && dilation[1] == 1 &&
         x.is_contiguous(at::MemoryFormat::ChannelsLast) && !x.is_contiguous();
}

}  // namespace

at::Tensor depthwise(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias,
                     at::IntArrayRef padding, at::IntArrayRef dilation, bool gelu) {
  DepthwiseCall call(x, weight, bias, padding, dilation, gelu);
  if (!call.is_empty() && takes_torch(x, weight, dilation, gelu)) {
    return depthwise_by_torch(x, weight, bias, padding, dilation)
        .contiguous(at::MemoryFormat::ChannelsLast);
  }
  at::Tensor result = call.empty_outputs();
  if (call.is_empty()) return result.to(x.scalar_type());
  call.pack(weight, bias);
  call.params.outputs = map_strides(result);
  call.pointers.result = result.mutable_data_ptr();
  set_items(call.params, accumulator_size(call.type));
  const DepthwiseKernel kernel = kernels_for(call.type).depthwise;
  call.for_items([&](void* workspace, int64_t begin, int64_t end) {
    kernel(call.params, call.pointers, workspace, begin, end);
  });
  return result.to(x.scalar_type());
}

namespace {

// Returns the gradient of the map: that of the result convolved with the taps in reverse order.
at::Tensor map_gradient(const at::Tensor& grad, const at::Tensor& weight, const Window& window) {
  const int64_t padding_h = window.dilation_h * (window.kernel_h - 1) - window.padding_h;
  const int64_t padding_w = window.dilation_w * (window.kernel_w - 1) - window.padding_w;
  const int64_t dilation[] = {window.dilation_h, window.dilation_w};
  return depthwise(grad, weight.flip({2, 3}), {}, {padding_h, padding_w}, dilation, false);
}

}  // namespace

// Returns the gradients of x, weight and bias.
std::tuple<at::Tensor, at::Tensor, at::Tensor> depthwise_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
    const OptionalTensor& bias, at::IntArrayRef padding, at::IntArrayRef dilation, bool gelu) {
  DepthwiseCall call(x, weight, bias, padding, dilation, gelu);
  DepthwiseParams& p = call.params;
  const int64_t channels = p.channels, taps = num_taps(p.window);
  check_sizes("grad", grad, {p.images, channels, p.out_height, p.out_width});
  const at::Tensor empty = call.empty_outputs();
  at::Tensor grad_outputs = in_layout_of(empty, grad.to(call.type));
  at::Tensor grad_convolution = gelu ? empty : grad_outputs;
  at::Tensor sums = new_zeros({1, round_up(channels) / kSimdWidth, taps + 1, kSimdWidth},
                              x.options().dtype(call.accumulator));
  if (!call.is_empty()) {
    call.pack(weight, bias);
    p.outputs = map_strides(empty);
    set_items(p, accumulator_size(call.type));
    sums = new_empty({p.images * p.bands, p.blocks, taps + 1, kSimdWidth}, sums.options());
    const DepthwiseBackwardPointers pointers = {call.pointers, grad_outputs.const_data_ptr(),
                                                grad_convolution.mutable_data_ptr(),
                                                sums.mutable_data_ptr()};
    const DepthwiseGradients kernel = kernels_for(call.type).depthwise_gradients;
    call.for_items([&](void* workspace, int64_t begin, int64_t end) {
      kernel(p, pointers, workspace, begin, end);
    });
  }
  // in order, so that the result does not depend on the number of threads
  at::Tensor total = sums[0];
  for (int64_t part = 1; part < sums.size(0); ++part) total.add_(sums[part]);
  const at::Tensor grads = from_blocks(total, channels);
  const at::Tensor grad_weight =
      grads.slice(1, 0, taps).reshape(weight.sizes()).to(weight.scalar_type());
  const at::Tensor grad_bias = bias ? grads.select(1, taps).to(bias->scalar_type()).contiguous()
                                    : new_empty({0}, weight.options());
  const at::Tensor grad_x = map_gradient(grad_convolution, weight, p.window);
  return {grad_x.to(x.scalar_type()), grad_weight.contiguous(), grad_bias};
}

}  // namespace mmrednet
