// Involution with its kernel generation inside as an operator of torch.

#include <ATen/Parallel.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>

#include "native.h"

namespace {

using OptionalTensor = std::optional<at::Tensor>;

at::Tensor solve(const at::Tensor& value_given, const at::Tensor& hidden_given, const at::Tensor& weight_given,
                 const OptionalTensor& bias_given, const OptionalTensor& scale_given, const OptionalTensor& shift_given,
                 bool relu, at::IntArrayRef window) {
  TORCH_CHECK(value_given.dim() == 5 && hidden_given.dim() == 4, "value must have 5 dimensions and hidden 4");
  const auto type = mmrednet::kernel_type(value_given.scalar_type(), hidden_given.scalar_type());
  const at::Tensor value = value_given.to(type), hidden = hidden_given.to(type);
  const at::Tensor weight = weight_given.to(type).contiguous();
  const at::Tensor bias = bias_given ? bias_given->to(type).contiguous() : at::zeros({weight.size(0)}, weight.options());
  at::Tensor result = mmrednet::empty_in_layout_of(
      value, {value.size(0), value.size(1), value.size(2), hidden.size(2), hidden.size(3)});
  if (result.numel() == 0) return result.to(value_given.scalar_type());
  mmrednet::Involution q;
  mmrednet::Problem& p = q.local;
  p.kind = mmrednet::kAggregate;
  p.geometry = mmrednet::geometry(window);
  p.first = mmrednet::view(value);
  p.second = {};
  p.result = mmrednet::view(result);
  p.groups = value.size(1);
  p.channels = value.size(2);
  p.height = value.size(3);
  p.width = value.size(4);
  p.out_height = hidden.size(2);
  p.out_width = hidden.size(3);
  p.held = 1;
  q.hidden = hidden.size(1);
  q.seen = {hidden.stride(0), 0, hidden.stride(1), hidden.stride(2), hidden.stride(3)};
  mmrednet::set_tiles(q, mmrednet::sum_bytes(type));
  mmrednet::InvolutionData data = {value.const_data_ptr(), hidden.const_data_ptr(), weight.const_data_ptr(),
                                   bias.const_data_ptr(), nullptr, nullptr, relu, result.mutable_data_ptr()};
  at::Tensor scale, shift;
  if (scale_given) {
    const auto sums = type == at::kDouble ? at::kDouble : at::kFloat;
    scale = scale_given->to(sums).contiguous(), shift = shift_given->to(sums).contiguous();
    data.scale = scale.const_data_ptr(), data.shift = shift.const_data_ptr();
  }
  const auto run = mmrednet::kernels_for(type).involution;
  const int64_t work = q.size * window[0] * window[1] * (p.channels + q.hidden);
  const int64_t grain = std::max<int64_t>(1, mmrednet::kGrain / std::max<int64_t>(1, work));
  at::parallel_for(0, value.size(0) * p.groups * q.tiles, grain, [&](int64_t begin, int64_t end) {
    std::unique_ptr<char[]> scratch(new char[q.scratch]);
    run(q, data, scratch.get(), begin, end);
  });
  return result.to(value_given.scalar_type());
}

at::Tensor involution(const at::Tensor& value, const at::Tensor& hidden, const at::Tensor& weight,
                      const OptionalTensor& bias, at::IntArrayRef window) {
  return solve(value, hidden, weight, bias, {}, {}, false, window);
}

at::Tensor affine(const at::Tensor& value, const at::Tensor& hidden, const at::Tensor& weight,
                  const OptionalTensor& bias, const at::Tensor& scale, const at::Tensor& shift, bool relu,
                  at::IntArrayRef window) {
  return solve(value, hidden, weight, bias, scale, shift, relu, window);
}

// The kernels are generated again, and stored: each is read by what follows as often as a gradient is.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad, const at::Tensor& value, const at::Tensor& hidden, const at::Tensor& weight,
    const OptionalTensor& bias, at::IntArrayRef window) {
  const at::Tensor generator = weight.unsqueeze(-1).unsqueeze(-1);
  const int64_t groups = value.size(1);
  const at::Tensor kernels = at::conv2d(hidden, generator, bias).unflatten(1, {groups, weight.size(0) / groups});
  at::Tensor grad_value = mmrednet::scatter(grad, kernels, value.sizes().slice(3), window).to(value.scalar_type());
  const at::Tensor grad_kernels = mmrednet::correlate(grad, value, window).to(hidden.scalar_type()).flatten(1, 2);
  auto [grad_hidden, grad_weight, grad_bias] =
      at::convolution_backward(grad_kernels, hidden, generator, {weight.size(0)}, {1, 1}, {0, 0}, {1, 1}, false, {0, 0},
                               1, {true, true, bias.has_value()});
  if (!bias) grad_bias = at::empty({0}, weight.options());
  return {grad_value, mmrednet::in_layout_of(hidden, grad_hidden), grad_weight.flatten(1).contiguous(), grad_bias};
}

}  // namespace

TORCH_LIBRARY_IMPL(mmrednet, CPU, m) {
  m.impl("involution", &involution);
  m.impl("involution_affine", &affine);
  m.impl("involution_backward", &backward);
}
