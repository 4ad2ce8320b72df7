// The three primitives for the CPU: from tensors to pointers and strides, from rows to threads.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <memory>

#include "kernel_table.h"
#include "native.h"
#include "operators.h"
#include "params.h"
#include "workspace.h"

namespace mmrednet {

namespace {

// What the primitives differ in. Sizes are (H, W).
struct Problem {
  Primitive primitive;
  Window window;
  // size of the result, and those of the feature map and of the outputs
  at::IntArrayRef result, map, outputs;
};

LocalParams local_params(const Problem& problem, const at::Tensor& first, const at::Tensor& second,
                         const at::Tensor& result) {
  LocalParams p = {};
  p.primitive = problem.primitive;
  p.window = problem.window;
  p.first = strides_of(first);
  p.second = strides_of(second);
  p.result = strides_of(result);
  p.groups = first.size(1);
  p.channels = first.size(2);
  p.height = problem.map[0];
  p.width = problem.map[1];
  p.out_height = problem.outputs[0];
  p.out_width = problem.outputs[1];
  p.result_rows = result.size(3);
  return p;
}

void set_workspace(LocalParams& p, int64_t element) {
  const LocalParams params = p.primitive == kScatter && can_flip(p) ? flip(p) : p;
  const Strides& map = p.primitive == kCorrelate ? p.second : p.first;
  p.cached_groups = cached_groups(params, map, element);
  p.workspace_bytes = workspace_bytes(p, element);
}

// Computes a primitive of tensors of one dtype, for which there are kernels.
void compute_into(const at::Tensor& result, const Problem& problem, const at::Tensor& first,
                  const at::Tensor& second) {
  if (result.numel() == 0) return;
  const auto type = result.scalar_type();
  LocalParams p = local_params(problem, first, second, result);
  set_workspace(p, accumulator_size(type));
  const LocalPointers pointers = {first.const_data_ptr(), second.const_data_ptr(),
                                  result.mutable_data_ptr()};
  const LocalKernel kernel = kernels_for(type).local;
  const int64_t rows = result.size(0) * p.groups * p.result_rows;
  const int64_t row_work = p.channels * result.size(4) * num_taps(p.window);
  at::parallel_for(0, rows, grain_size(row_work), [&](int64_t begin, int64_t end) {
    std::unique_ptr<char[]> workspace(new char[p.workspace_bytes]);
    kernel(p, pointers, workspace.get(), begin, end);
  });
}

// Computes a primitive. The result has the dtype and the layout of the first operand.
at::Tensor compute(const Problem& problem, const at::Tensor& first_operand,
                   const at::Tensor& second_operand) {
  const auto type = kernel_type(first_operand.scalar_type(), second_operand.scalar_type());
  const at::Tensor first = first_operand.to(type), second = second_operand.to(type);
  const at::Tensor result = empty_in_layout_of(first, problem.result);
  compute_into(result, problem, first, second);
  return result.to(first_operand.scalar_type());
}

}  // namespace

at::Tensor aggregate(const at::Tensor& value, const at::Tensor& weight, at::IntArrayRef numbers) {
  const Window window = to_window(numbers, true);
  TORCH_CHECK_VALUE(value.dim() == 5, "value must have 5 dimensions, got ", value.sizes());
  const int64_t batch = value.size(0), groups = value.size(1), channels = value.size(2);
  const auto map = value.sizes().slice(3);
  const auto outputs = output_size(window, map);
  check_sizes("weight", weight, {batch, groups, num_taps(window), outputs[0], outputs[1]});
  const int64_t result[] = {batch, groups, channels, outputs[0], outputs[1]};
  return compute({kAggregate, window, result, map, outputs}, value, weight);
}

at::Tensor correlate(const at::Tensor& query, const at::Tensor& key, at::IntArrayRef numbers) {
  const Window window = to_window(numbers, true);
  TORCH_CHECK_VALUE(key.dim() == 5, "key must have 5 dimensions, got ", key.sizes());
  const int64_t batch = key.size(0), groups = key.size(1), channels = key.size(2);
  const auto map = key.sizes().slice(3);
  const auto outputs = output_size(window, map);
  check_sizes("query", query, {batch, groups, channels, outputs[0], outputs[1]});
  const int64_t result[] = {batch, groups, num_taps(window), outputs[0], outputs[1]};
  return compute({kCorrelate, window, result, map, outputs}, query, key);
}

at::Tensor scatter(const at::Tensor& grad, const at::Tensor& weight, at::IntArrayRef size,
                   at::IntArrayRef numbers) {
  const Window window = to_window(numbers, true);
  TORCH_CHECK_VALUE(grad.dim() == 5 && size.size() == 2,
                    "grad must have 5 dimensions and size 2, got ", grad.sizes(), " and ", size);
  const int64_t batch = grad.size(0), groups = grad.size(1), channels = grad.size(2);
  const auto outputs = output_size(window, size);
  check_sizes("grad", grad, {batch, groups, channels, outputs[0], outputs[1]});
  check_sizes("weight", weight, {batch, groups, num_taps(window), outputs[0], outputs[1]});
  const int64_t result[] = {batch, groups, channels, size[0], size[1]};
  return compute({kScatter, window, result, size, outputs}, grad, weight);
}

void scatter_into(const at::Tensor& result, const at::Tensor& grad, const at::Tensor& weight,
                  at::IntArrayRef numbers) {
  const Window window = to_window(numbers, true);
  const auto size = result.sizes().slice(3);
  const auto outputs = output_size(window, size);
  compute_into(result, {kScatter, window, result.sizes(), size, outputs}, grad, weight);
}

}  // namespace mmrednet
