// Involution with its kernel generation inside as an operator of torch.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>

#include "native.h"

namespace {

using OptionalTensor = std::optional<at::Tensor>;

// what all directions share: the tensors in the type of the kernels, and what a kernel is told of
// them
struct Call {
  at::ScalarType type, sums;
  at::Tensor value, hidden, weight, bias;
  mmrednet::Involution q = {};
  mmrednet::InvolutionData data = {};

  Call(const at::Tensor& value_given, const at::Tensor& hidden_given,
       const at::Tensor& weight_given, const OptionalTensor& bias_given,
       const mmrednet::Geometry& g) {
    TORCH_CHECK_VALUE(value_given.dim() == 5 && hidden_given.dim() == 4,
                      "value must have 5 dimensions and hidden 4, got ", value_given.sizes(),
                      " and ", hidden_given.sizes());
    const auto outputs = mmrednet::output_size(g, value_given.sizes().slice(3));
    const int64_t features = hidden_given.size(1),
                  rows = value_given.size(1) * g.kernel_h * g.kernel_w;
    mmrednet::check_sizes("hidden", hidden_given,
                          {value_given.size(0), features, outputs[0], outputs[1]});
    mmrednet::check_sizes("weight", weight_given, {rows, features});
    if (bias_given) mmrednet::check_sizes("bias", *bias_given, {rows});
    type = mmrednet::kernel_type(value_given.scalar_type(), hidden_given.scalar_type());
    sums = type == at::kDouble ? at::kDouble : at::kFloat;
    value = value_given.to(type), hidden = hidden_given.to(type),
    weight = weight_given.to(type).contiguous();
    bias = bias_given ? bias_given->to(type).contiguous() : at::zeros({rows}, weight.options());
    data.value = value.const_data_ptr(), data.hidden = hidden.const_data_ptr();
    data.weight = weight.const_data_ptr(), data.bias = bias.const_data_ptr();
    describe(g);
  }

  void describe(const mmrednet::Geometry& g) {
    mmrednet::Problem& p = q.local;
    p.kind = mmrednet::kAggregate;
    p.geometry = g;
    p.first = mmrednet::view(value);
    p.groups = value.size(1), p.channels = value.size(2), p.height = value.size(3),
    p.width = value.size(4);
    p.out_height = hidden.size(2), p.out_width = hidden.size(3);
    p.lines = p.out_height, p.held = 1;
    q.hidden = hidden.size(1);
    q.seen = {hidden.stride(0), 0, hidden.stride(1), hidden.stride(2), hidden.stride(3)};
  }

  // `run` gets memory of its own for some of the tiles of all groups
  template <typename Run>
  void for_tiles(Run run) const {
    const mmrednet::Problem& p = q.local;
    const int64_t work =
        q.size * p.geometry.kernel_h * p.geometry.kernel_w * (p.channels + q.hidden);
    const int64_t grain = std::max<int64_t>(1, mmrednet::kGrain / std::max<int64_t>(1, work));
    at::parallel_for(0, value.size(0) * p.groups * q.tiles, grain, [&](int64_t begin, int64_t end) {
      std::unique_ptr<char[]> scratch(new char[q.scratch]);
      run(scratch.get(), begin, end);
    });
  }
};

at::Tensor solve(const at::Tensor& value, const at::Tensor& hidden, const at::Tensor& weight,
                 const OptionalTensor& bias, const OptionalTensor& scale_given,
                 const OptionalTensor& shift_given, bool relu, at::IntArrayRef window) {
  Call call(value, hidden, weight, bias, mmrednet::geometry(window));
  at::Tensor result = mmrednet::empty_in_layout_of(
      call.value, {value.size(0), value.size(1), value.size(2), hidden.size(2), hidden.size(3)});
  call.q.local.result = mmrednet::view(result);
  call.data.result = result.mutable_data_ptr();
  at::Tensor scale, shift;
  if (scale_given) {
    mmrednet::check_sizes("scale", *scale_given, {value.size(1) * value.size(2)});
    mmrednet::check_sizes("shift", *shift_given, {value.size(1) * value.size(2)});
    scale = scale_given->to(call.sums).contiguous(),
    shift = shift_given->to(call.sums).contiguous();
    call.data.scale = scale.const_data_ptr(), call.data.shift = shift.const_data_ptr(),
    call.data.relu = relu;
  }
  if (result.numel() == 0) return result.to(value.scalar_type());
  mmrednet::set_tiles(call.q, mmrednet::sum_bytes(call.type));
  const auto run = mmrednet::kernels_for(call.type).involution;
  call.for_tiles([&](void* memory, int64_t begin, int64_t end) {
    run(call.q, call.data, memory, begin, end);
  });
  return result.to(value.scalar_type());
}

at::Tensor involution(const at::Tensor& value, const at::Tensor& hidden, const at::Tensor& weight,
                      const OptionalTensor& bias, at::IntArrayRef window) {
  return solve(value, hidden, weight, bias, {}, {}, false, window);
}

at::Tensor affine(const at::Tensor& value, const at::Tensor& hidden, const at::Tensor& weight,
                  const OptionalTensor& bias, const at::Tensor& scale, const at::Tensor& shift,
                  bool relu, at::IntArrayRef window) {
  return solve(value, hidden, weight, bias, scale, shift, relu, window);
}

// the kernels, (B, G, K, Ho, Wo), and the hidden features in the type of sums, (B, Ho Wo, padded R)
std::tuple<at::Tensor, at::Tensor> stored(Call& call) {
  mmrednet::Problem& p = call.q.local;
  const int64_t images = call.value.size(0), taps = p.geometry.kernel_h * p.geometry.kernel_w;
  at::Tensor kernels =
      at::empty({images, p.groups, taps, p.out_height, p.out_width}, call.value.options());
  at::Tensor features =
      at::empty({images, p.out_height * p.out_width, mmrednet::padded(call.q.hidden)},
                call.value.options().dtype(call.sums));
  call.data.result = kernels.mutable_data_ptr();
  mmrednet::set_flat_tiles(call.q, mmrednet::sum_bytes(call.type));
  const auto run = mmrednet::kernels_for(call.type).store_kernels;
  call.for_tiles([&](void* memory, int64_t begin, int64_t end) {
    run(call.q, call.data, features.mutable_data_ptr(), memory, begin, end);
  });
  return {kernels, features};
}

// of the hidden features, weight and bias, the last two in the type of sums
std::tuple<at::Tensor, at::Tensor, at::Tensor> generator_gradients(const Call& call,
                                                                   const at::Tensor& grad,
                                                                   const at::Tensor& features) {
  const int64_t images = call.value.size(0), number = mmrednet::sum_bytes(call.type);
  mmrednet::Generated q = {};
  q.local = call.q.local;
  q.local.kind = mmrednet::kCorrelate;
  q.local.first = mmrednet::view(grad);
  q.local.second = mmrednet::view(call.value);
  q.hidden = call.q.hidden;
  mmrednet::set_parts(q, images, number);
  at::Tensor grad_hidden = at::empty_like(call.hidden);
  q.seen = {grad_hidden.stride(0), 0, grad_hidden.stride(1), grad_hidden.stride(2),
            grad_hidden.stride(3)};
  const int64_t taps = q.local.geometry.kernel_h * q.local.geometry.kernel_w,
                groups = q.local.groups;
  const at::Tensor weight =
      call.weight.view({groups, taps, q.hidden}).to(call.sums).transpose(1, 2).contiguous();
  at::Tensor weight_sums =
      at::empty({q.chunks, groups * taps, mmrednet::padded(q.hidden)}, weight.options());
  at::Tensor bias_sums = at::empty({q.chunks, groups * taps}, weight.options());
  at::Tensor hidden_sums = at::empty({q.blocks, q.all, q.hidden, q.pitch}, weight.options());
  const mmrednet::GeneratedData data = {
      grad.const_data_ptr(),          call.value.const_data_ptr(),    features.const_data_ptr(),
      weight.const_data_ptr(),        weight_sums.mutable_data_ptr(), bias_sums.mutable_data_ptr(),
      hidden_sums.mutable_data_ptr(), grad_hidden.mutable_data_ptr()};
  const mmrednet::Typed& kernels = mmrednet::kernels_for(call.type);
  at::parallel_for(0, q.chunks * q.blocks, 1, [&](int64_t begin, int64_t end) {
    std::unique_ptr<char[]> scratch(new char[q.scratch]);
    kernels.kernel_gradients(q, data, scratch.get(), begin, end);
  });
  const int64_t grain =
      std::max<int64_t>(1, mmrednet::kGrain / std::max<int64_t>(1, q.hidden * q.pitch));
  at::parallel_for(0, q.all, grain, [&](int64_t begin, int64_t end) {
    kernels.hidden_gradients(q, data, begin, end);
  });
  for (int64_t chunk = 1; chunk < q.chunks; ++chunk) {
    weight_sums[0].add_(weight_sums[chunk]);
    bias_sums[0].add_(bias_sums[chunk]);
  }
  return {grad_hidden, weight_sums[0].narrow(1, 0, q.hidden), bias_sums[0]};
}

// The kernels are generated again, and stored: each is read by what follows as often as a gradient
// is.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad_given, const at::Tensor& value, const at::Tensor& hidden,
    const at::Tensor& weight, const OptionalTensor& bias, at::IntArrayRef window) {
  Call call(value, hidden, weight, bias, mmrednet::geometry(window));
  mmrednet::check_sizes(
      "grad", grad_given,
      {value.size(0), value.size(1), value.size(2), hidden.size(2), hidden.size(3)});
  const at::Tensor grad = grad_given.to(call.type), no_bias = at::empty({0}, weight.options());
  if (grad.numel() == 0)
    return {mmrednet::empty_in_layout_of(grad_given, value.sizes()).to(value.scalar_type()).zero_(),
            at::zeros_like(hidden), at::zeros(weight.sizes(), weight.options()),
            bias ? at::zeros(bias->sizes(), bias->options()) : no_bias};
  auto [kernels, features] = stored(call);
  const at::Tensor grad_value =
      mmrednet::scatter(grad_given, kernels, value.sizes().slice(3), window);
  kernels.reset();
  const auto [grad_hidden, grad_weight, grad_bias] = generator_gradients(call, grad, features);
  return {grad_value.to(value.scalar_type()),
          mmrednet::in_layout_of(hidden, grad_hidden.to(hidden.scalar_type())),
          grad_weight.to(weight.scalar_type()).contiguous(),
          bias ? grad_bias.to(bias->scalar_type()) : no_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(mmrednet, CPU, m) {
  m.impl("involution", &involution);
  m.impl("involution_affine", &affine);
  m.impl("involution_backward", &backward);
}
