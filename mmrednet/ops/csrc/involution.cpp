// Involution with its kernel generation fused, for the CPU: see mmrednet/ops/involution.py.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>

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

// The inputs of all directions.
struct Inputs {
  at::Tensor value, hidden, weight;
  OptionalTensor bias;
};

void check_inputs(const Inputs& inputs, const Window& window) {
  const auto& [value, hidden, weight, bias] = inputs;
  TORCH_CHECK_VALUE(value.dim() == 5 && hidden.dim() == 4,
                    "value must have 5 dimensions and hidden 4, got ", value.sizes(), " and ",
                    hidden.sizes());
  const auto outputs = output_size(window, value.sizes().slice(3));
  const int64_t hidden_channels = hidden.size(1), rows = value.size(1) * num_taps(window);
  check_sizes("hidden", hidden, {value.size(0), hidden_channels, outputs[0], outputs[1]});
  check_sizes("weight", weight, {rows, hidden_channels});
  if (bias) check_sizes("bias", *bias, {rows});
}

// Returns the strides of hidden features (B, R, Ho, Wo), which have no groups.
Strides hidden_strides(const at::Tensor& hidden) {
  return {hidden.stride(0), 0, hidden.stride(1), hidden.stride(2), hidden.stride(3)};
}

// What all directions share: tensors in the dtype of the kernels, and their parameters.
struct InvolutionCall {
  at::ScalarType type, accumulator;
  at::Tensor value, hidden, weight, bias;
  InvolutionParams params = {};
  InvolutionPointers pointers = {};

  InvolutionCall(const Inputs& inputs, const Window& window) {
    check_inputs(inputs, window);
    type = kernel_type(inputs.value.scalar_type(), inputs.hidden.scalar_type());
    accumulator = accumulator_type(type);
    value = inputs.value.to(type);
    hidden = inputs.hidden.to(type);
    weight = inputs.weight.to(type).contiguous();
    bias = inputs.bias ? inputs.bias->to(type).contiguous()
                       : new_zeros({weight.size(0)}, weight.options());
    pointers.value = value.const_data_ptr();
    pointers.hidden = hidden.const_data_ptr();
    pointers.weight = weight.const_data_ptr();
    pointers.bias = bias.const_data_ptr();
    set_sizes(window);
  }

  void set_sizes(const Window& window) {
    LocalParams& p = params.local;
    p.primitive = kAggregate;
    p.window = window;
    p.first = strides_of(value);
    p.groups = value.size(1);
    p.channels = value.size(2);
    p.height = value.size(3);
    p.width = value.size(4);
    p.out_height = hidden.size(2);
    p.out_width = hidden.size(3);
    p.result_rows = p.out_height;
    p.cached_groups = 1;
    params.hidden_channels = hidden.size(1);
    params.hidden_strides = hidden_strides(hidden);
  }

  // Calls `kernel` with a workspace and a range of tiles, for all tiles of all groups and images.
  template <typename Kernel>
  void for_tiles(Kernel kernel) const {
    const LocalParams& p = params.local;
    const int64_t tile_work =
        params.tile_size * num_taps(p.window) * (p.channels + params.hidden_channels);
    const int64_t tiles = value.size(0) * p.groups * params.tiles;
    at::parallel_for(0, tiles, grain_size(tile_work), [&](int64_t begin, int64_t end) {
      std::unique_ptr<char[]> workspace(new char[params.workspace_bytes]);
      kernel(workspace.get(), begin, end);
    });
  }
};

// Scale and shift of each channel, and whether a ReLU follows them.
struct Affine {
  at::Tensor scale, shift;
  bool relu;
};

// Returns the result of involution, with an affine map of it if `affine` is not null.
at::Tensor forward(const Inputs& inputs, const Affine* affine, at::IntArrayRef numbers) {
  InvolutionCall call(inputs, to_window(numbers));
  const LocalParams& p = call.params.local;
  const auto result_type = inputs.value.scalar_type();
  at::Tensor result = empty_in_layout_of(
      call.value, {call.value.size(0), p.groups, p.channels, p.out_height, p.out_width});
  call.params.local.result = strides_of(result);
  call.pointers.result = result.mutable_data_ptr();
  at::Tensor scale, shift;
  if (affine) {
    check_sizes("scale", affine->scale, {p.groups * p.channels});
    check_sizes("shift", affine->shift, {p.groups * p.channels});
    scale = affine->scale.to(call.accumulator).contiguous();
    shift = affine->shift.to(call.accumulator).contiguous();
    call.pointers.scale = scale.const_data_ptr();
    call.pointers.shift = shift.const_data_ptr();
    call.pointers.relu = affine->relu;
  }
  if (result.numel() == 0) return result.to(result_type);
  set_tiles(call.params, accumulator_size(call.type));
  const InvolutionKernel kernel = kernels_for(call.type).involution;
  call.for_tiles([&](void* workspace, int64_t begin, int64_t end) {
    kernel(call.params, call.pointers, workspace, begin, end);
  });
  return result.to(result_type);
}

// Returns the kernels (B, G, K, Ho, Wo), and the hidden features (B, Ho Wo, R) in the accumulator
// type, with R rounded up to the SIMD width.
std::tuple<at::Tensor, at::Tensor> generate_kernels(InvolutionCall& call) {
  InvolutionParams& params = call.params;
  const LocalParams& p = params.local;
  const int64_t batch = call.value.size(0), outputs = p.out_height * p.out_width;
  at::Tensor kernels = new_empty({batch, p.groups, num_taps(p.window), p.out_height, p.out_width},
                                 call.value.options());
  at::Tensor features = new_empty({batch, outputs, round_up(params.hidden_channels)},
                                  call.value.options().dtype(call.accumulator));
  call.pointers.result = kernels.mutable_data_ptr();
  set_flat_tiles(params, accumulator_size(call.type));
  const StoreKernels kernel = kernels_for(call.type).store_kernels;
  call.for_tiles([&](void* workspace, int64_t begin, int64_t end) {
    kernel(params, call.pointers, features.mutable_data_ptr(), workspace, begin, end);
  });
  return {kernels, features};
}

// The gradients of involution's generator of kernels: sums over tiles, in parts.
struct GeneratorGradients {
  const InvolutionCall& call;
  const at::Tensor& grad;
  InvolutionBackwardParams params = {};
  at::Tensor grad_hidden, weight_sums, bias_sums, hidden_sums;

  GeneratorGradients(const InvolutionCall& involution, const at::Tensor& grad_output)
      : call(involution), grad(grad_output) {
    const LocalParams& p = params.local = call.params.local;
    params.local.primitive = kCorrelate;
    params.local.first = strides_of(grad);
    params.local.second = strides_of(call.value);
    params.hidden_channels = call.params.hidden_channels;
    set_parts(params, call.value.size(0), accumulator_size(call.type));
    grad_hidden = new_empty_like(call.hidden);
    params.hidden_strides = hidden_strides(grad_hidden);

    const int64_t rows = p.groups * num_taps(p.window), hidden = params.hidden_channels;
    const auto options = call.value.options().dtype(call.accumulator);
    weight_sums = new_empty({params.chunks, rows, round_up(hidden)}, options);
    bias_sums = new_empty({params.chunks, rows}, options);
    hidden_sums = new_empty({params.blocks, params.tiles, hidden, params.tile_pitch}, options);
  }

  // Computes all gradients: that of the hidden features is then in grad_hidden, those of weight and
  // bias are in the sums of the first chunk.
  void run(const at::Tensor& features) {
    const int64_t taps = num_taps(params.local.window);
    const at::Tensor weight = call.weight.view({params.local.groups, taps, params.hidden_channels})
                                  .to(call.accumulator)
                                  .transpose(1, 2)
                                  .contiguous();
    const InvolutionBackwardPointers pointers = {
        grad.const_data_ptr(),          call.value.const_data_ptr(),
        features.const_data_ptr(),      weight.const_data_ptr(),
        weight_sums.mutable_data_ptr(), bias_sums.mutable_data_ptr(),
        hidden_sums.mutable_data_ptr(), grad_hidden.mutable_data_ptr()};
    const DtypeKernels& kernels = kernels_for(call.type);
    // a part is at least kMinChunkOutputs outputs, enough for a thread
    at::parallel_for(0, params.chunks * params.blocks, 1, [&](int64_t begin, int64_t end) {
      std::unique_ptr<char[]> workspace(new char[params.workspace_bytes]);
      kernels.kernel_gradients(params, pointers, workspace.get(), begin, end);
    });
    const int64_t tile_work = params.hidden_channels * params.tile_pitch;
    at::parallel_for(0, params.tiles, grain_size(tile_work), [&](int64_t begin, int64_t end) {
      kernels.hidden_gradients(params, pointers, begin, end);
    });
    for (int64_t chunk = 1; chunk < params.chunks; ++chunk) {
      weight_sums[0].add_(weight_sums[chunk]);
      bias_sums[0].add_(bias_sums[chunk]);
    }
  }
};

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// The gradients of inputs without outputs are zero.
Gradients zero_gradients(const at::Tensor& grad, const Inputs& inputs) {
  const auto& [value, hidden, weight, bias] = inputs;
  const at::Tensor grad_value = empty_in_layout_of(grad, value.sizes()).to(value.scalar_type());
  const at::Tensor grad_bias =
      bias ? new_zeros(bias->sizes(), bias->options()) : new_empty({0}, weight.options());
  return {grad_value.zero_(), new_empty_like(hidden).zero_(),
          new_zeros(weight.sizes(), weight.options()), grad_bias};
}

}  // namespace

at::Tensor involution(const at::Tensor& value, const at::Tensor& hidden, const at::Tensor& weight,
                      const OptionalTensor& bias, at::IntArrayRef window) {
  return forward({value, hidden, weight, bias}, nullptr, window);
}

at::Tensor involution_affine(const at::Tensor& value, const at::Tensor& hidden,
                             const at::Tensor& weight, const OptionalTensor& bias,
                             const at::Tensor& scale, const at::Tensor& shift, bool relu,
                             at::IntArrayRef window) {
  const Affine affine = {scale, shift, relu};
  return forward({value, hidden, weight, bias}, &affine, window);
}

// Returns the gradients of value, hidden, weight and bias; an empty tensor if there is no bias.
Gradients involution_backward(const at::Tensor& grad_output, const at::Tensor& value,
                              const at::Tensor& hidden, const at::Tensor& weight,
                              const OptionalTensor& bias, at::IntArrayRef numbers) {
  const Inputs inputs = {value, hidden, weight, bias};
  InvolutionCall call(inputs, to_window(numbers));
  check_sizes("grad", grad_output,
              {value.size(0), value.size(1), value.size(2), hidden.size(2), hidden.size(3)});
  const at::Tensor grad = grad_output.to(call.type);
  if (grad.numel() == 0) return zero_gradients(grad_output, inputs);

  // Kernels are stored, because the scatter reads each of them many times: once for each channel
  // of its group.
  auto [kernels, features] = generate_kernels(call);
  const at::Tensor grad_value = scatter(grad_output, kernels, value.sizes().slice(3), numbers);
  // free their memory before the next step takes some
  kernels.reset();

  GeneratorGradients gradients(call, grad);
  gradients.run(features);
  const at::Tensor grad_hidden = gradients.grad_hidden.to(hidden.scalar_type());
  const at::Tensor grad_weight = gradients.weight_sums[0].narrow(1, 0, hidden.size(1));
  const at::Tensor grad_bias =
      bias ? gradients.bias_sums[0].to(bias->scalar_type()) : new_empty({0}, weight.options());
  return {grad_value.to(value.scalar_type()), in_layout_of(hidden, grad_hidden),
          grad_weight.to(weight.scalar_type()).contiguous(), grad_bias};
}

}  // namespace mmrednet
