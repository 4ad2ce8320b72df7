// The three primitives as operators of torch: tensors to pointers and strides, rows to threads.

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>

#include "native.h"

namespace {

using mmrednet::Kind;
using mmrednet::Problem;

at::Tensor solve(Kind kind, const at::Tensor& first_given, const at::Tensor& second_given,
                 at::IntArrayRef size, at::IntArrayRef map, at::IntArrayRef outputs,
                 const mmrednet::Geometry& geometry) {
  const auto type = mmrednet::kernel_type(first_given.scalar_type(), second_given.scalar_type());
  const at::Tensor first = first_given.to(type), second = second_given.to(type);
  at::Tensor result = mmrednet::empty_in_layout_of(first, size);
  if (result.numel() == 0) return result.to(first_given.scalar_type());
  Problem p;
  p.kind = kind;
  p.geometry = geometry;
  p.first = mmrednet::view(first);
  p.second = mmrednet::view(second);
  p.result = mmrednet::view(result);
  p.groups = first.size(1);
  p.channels = first.size(2);
  p.height = map[0];
  p.width = map[1];
  p.out_height = outputs[0];
  p.out_width = outputs[1];
  p.lines = size[3];
  const auto run = mmrednet::kernels_for(type).local;
  const int64_t line_work =
      std::max<int64_t>(1, p.channels * size[4] * geometry.kernel_h * geometry.kernel_w);
  const int64_t grain = std::max<int64_t>(1, mmrednet::kGrain / line_work);
  const Problem f = kind == mmrednet::kScatter && mmrednet::can_flip(p) ? mmrednet::flipped(p) : p;
  p.held = mmrednet::held_groups(f, kind == mmrednet::kCorrelate ? p.second : p.first,
                                 mmrednet::sum_bytes(type));
  p.scratch = mmrednet::scratch_bytes(p, mmrednet::sum_bytes(type));
  at::parallel_for(0, size[0] * p.groups * p.lines, grain, [&](int64_t begin, int64_t end) {
    std::unique_ptr<char[]> scratch(new char[p.scratch]);
    run(p, first.const_data_ptr(), second.const_data_ptr(), result.mutable_data_ptr(),
        scratch.get(), begin, end);
  });
  return result.to(first_given.scalar_type());
}

}  // namespace

namespace mmrednet {

at::Tensor aggregate(const at::Tensor& value, const at::Tensor& weight, at::IntArrayRef window) {
  const Geometry g = geometry(window);
  TORCH_CHECK_VALUE(value.dim() == 5, "value must have 5 dimensions, got ", value.sizes());
  const auto outputs = output_size(g, value.sizes().slice(3));
  check_sizes("weight", weight,
              {value.size(0), value.size(1), g.kernel_h * g.kernel_w, outputs[0], outputs[1]});
  return solve(kAggregate, value, weight,
               {value.size(0), value.size(1), value.size(2), outputs[0], outputs[1]},
               value.sizes().slice(3), outputs, g);
}

at::Tensor correlate(const at::Tensor& query, const at::Tensor& key, at::IntArrayRef window) {
  const Geometry g = geometry(window);
  TORCH_CHECK_VALUE(key.dim() == 5, "key must have 5 dimensions, got ", key.sizes());
  const auto outputs = output_size(g, key.sizes().slice(3));
  check_sizes("query", query, {key.size(0), key.size(1), key.size(2), outputs[0], outputs[1]});
  return solve(kCorrelate, query, key,
               {key.size(0), key.size(1), g.kernel_h * g.kernel_w, outputs[0], outputs[1]},
               key.sizes().slice(3), outputs, g);
}

at::Tensor scatter(const at::Tensor& grad, const at::Tensor& weight, at::IntArrayRef size,
                   at::IntArrayRef window) {
  const Geometry g = geometry(window);
  TORCH_CHECK_VALUE(grad.dim() == 5 && size.size() == 2,
                    "grad must have 5 dimensions and size 2, got ", grad.sizes(), " and ", size);
  const auto outputs = output_size(g, size);
  check_sizes("grad", grad, {grad.size(0), grad.size(1), grad.size(2), outputs[0], outputs[1]});
  check_sizes("weight", weight,
              {grad.size(0), grad.size(1), g.kernel_h * g.kernel_w, outputs[0], outputs[1]});
  return solve(kScatter, grad, weight, {grad.size(0), grad.size(1), grad.size(2), size[0], size[1]},
               size, outputs, g);
}

}  // namespace mmrednet

TORCH_LIBRARY_IMPL(mmrednet, CPU, m) {
  m.impl("aggregate", &mmrednet::aggregate);
  m.impl("correlate", &mmrednet::correlate);
  m.impl("scatter", &mmrednet::scatter);
}
