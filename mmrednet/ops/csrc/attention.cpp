// Local attention for the CPU: see mmrednet/ops/attention.py and difference_attention.py.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/core/ScalarType.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>

#include "integers.h"
#include "kernel_table.h"
#include "native.h"
#include "params.h"
#include "workspace.h"

namespace mmrednet {

namespace {

using OptionalTensor = std::optional<at::Tensor>;

// The inputs of both directions.
struct Inputs {
  at::Tensor query, key, value;
  OptionalTensor rows, columns, bias;
};

void check_inputs(const Inputs& inputs, const Window& window) {
  const auto& [query, key, value, rows, columns, bias] = inputs;
  TORCH_CHECK_VALUE(key.dim() == 5 && value.dim() == 5,
                    "key and value must have 5 dimensions, got ", key.sizes(), " and ",
                    value.sizes());
  const auto outputs = output_size(window, key.sizes().slice(3));
  const int64_t batch = key.size(0), heads = key.size(1), channels = key.size(2);
  check_sizes("query", query, {batch, heads, channels, outputs[0], outputs[1]});
  check_sizes("value", value, {batch, heads, value.size(2), key.size(3), key.size(4)});
  TORCH_CHECK_VALUE(rows.has_value() == columns.has_value(),
                    "rows and columns must be given together");
  TORCH_CHECK_VALUE(!rows || channels % 2 == 0,
                    "query must have an even number of channels for rows and columns, got ",
                    query.sizes());
  if (rows) check_sizes("rows", *rows, {heads, channels / 2, window.kernel_h});
  if (columns) check_sizes("columns", *columns, {heads, channels / 2, window.kernel_w});
  if (bias) check_sizes("bias", *bias, {heads, num_taps(window)});
}

LocalParams local_params(Primitive primitive, const at::Tensor& map, const at::Tensor& query,
                         const Window& window) {
  LocalParams p = {};
  p.primitive = primitive;
  p.window = window;
  p.groups = map.size(1);
  p.channels = map.size(2);
  p.height = map.size(3);
  p.width = map.size(4);
  p.out_height = query.size(3);
  p.out_width = query.size(4);
  p.result_rows = p.out_height;
  return p;
}

// Returns a table (heads, channels, taps) as (heads, taps, channels): a matrix for each head.
at::Tensor transposed_table(const OptionalTensor& table, at::ScalarType type) {
  return table ? table->to(type).transpose(1, 2).contiguous() : at::Tensor();
}

const void* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

// What both directions share: tensors in the dtype of the kernels, and their parameters.
struct AttentionCall {
  at::ScalarType type, accumulator;
  at::Tensor query, key, value, rows, columns, bias;
  AttentionParams params = {};
  AttentionPointers pointers = {};

  AttentionCall(const Inputs& inputs, const Window& window, Relation relation) {
    check_inputs(inputs, window);
    params.relation = relation;
    const auto query_type = inputs.query.scalar_type(), key_type = inputs.key.scalar_type();
    type = kernel_type(c10::promoteTypes(query_type, key_type), inputs.value.scalar_type());
    accumulator = accumulator_type(type);
    query = inputs.query.to(type);
    key = inputs.key.to(type);
    value = inputs.value.to(type);
    rows = transposed_table(inputs.rows, accumulator);
    columns = transposed_table(inputs.columns, accumulator);
    if (inputs.bias) bias = inputs.bias->to(accumulator).contiguous();

    params.keys = local_params(kCorrelate, key, query, window);
    params.keys.first = strides_of(query);
    params.keys.second = strides_of(key);
    params.values = local_params(kAggregate, value, query, window);
    params.values.first = strides_of(value);
    pointers.query = query.const_data_ptr();
    pointers.key = key.const_data_ptr();
    pointers.value = value.const_data_ptr();
    pointers.rows = data_or_null(rows);
    pointers.columns = data_or_null(columns);
    pointers.bias = data_or_null(bias);
  }

  // Runs the kernel. Strides and pointers of the outputs have been set.
  void run() {
    LocalParams &keys = params.keys, &values = params.values;
    const int64_t element = accumulator_size(type);
    keys.cached_groups = int_min(cached_groups(keys, keys.second, element),
                                 cached_groups(values, values.first, element));
    params.workspace_bytes = workspace_bytes(params, element);
    const int64_t row_work =
        (keys.channels + values.channels) * keys.out_width * num_taps(keys.window);
    const int64_t rows = keys.out_width == 0 ? 0 : query.size(0) * keys.groups * keys.result_rows;
    const AttentionKernel kernel = kernels_for(type).attention;
    at::parallel_for(0, rows, grain_size(row_work), [&](int64_t begin, int64_t end) {
      std::unique_ptr<char[]> workspace(new char[params.workspace_bytes]);
      kernel(params, pointers, workspace.get(), begin, end);
    });
  }
};

// Returns the result (B, N, D, Ho, Wo). Stores the logsumexp of the logits in a tensor (B, N, Ho,
// Wo) of the accumulator type, if there is one.
at::Tensor forward(AttentionCall& call, at::ScalarType result_type, at::Tensor logsumexp) {
  const LocalParams& values = call.params.values;
  at::Tensor result = empty_in_layout_of(
      call.value,
      {call.value.size(0), values.groups, values.channels, values.out_height, values.out_width});
  call.params.values.result = strides_of(result);
  call.pointers.result = result.mutable_data_ptr();
  if (logsumexp.defined()) call.pointers.logsumexp = logsumexp.mutable_data_ptr();
  call.run();
  return result.to(result_type);
}

// Returns the attention weights and the gradients of the logits, both (B, N, K, Ho, Wo).
std::tuple<at::Tensor, at::Tensor> backward(AttentionCall& call, const at::Tensor& grad_output) {
  const LocalParams& values = call.params.values;
  const int64_t batch = call.value.size(0);
  check_sizes("grad", grad_output,
              {batch, values.groups, values.channels, values.out_height, values.out_width});
  const at::Tensor grad = grad_output.to(call.type);
  at::Tensor weight = empty_in_layout_of(
      call.query.to(call.accumulator),
      {batch, values.groups, num_taps(values.window), values.out_height, values.out_width});
  at::Tensor grad_logits = at::empty_like(weight);
  call.params.backward = true;
  call.params.grad = strides_of(grad);
  call.params.weight = strides_of(weight);
  call.pointers.grad = grad.const_data_ptr();
  call.pointers.weight = weight.mutable_data_ptr();
  call.pointers.grad_logits = grad_logits.mutable_data_ptr();
  call.run();
  return {weight, grad_logits};
}

std::tuple<at::Tensor, at::Tensor> attention(const at::Tensor& query, const at::Tensor& key,
                                             const at::Tensor& value, const OptionalTensor& rows,
                                             const OptionalTensor& columns,
                                             const OptionalTensor& bias, at::IntArrayRef window) {
  AttentionCall call({query, key, value, rows, columns, bias}, to_window(window), kProduct);
  at::Tensor logsumexp = at::empty({query.size(0), query.size(1), query.size(3), query.size(4)},
                                   query.options().dtype(call.accumulator));
  const at::Tensor result = forward(call, value.scalar_type(), logsumexp);
  // the values may be float64 where query and key are not
  const auto logit_type = c10::promoteTypes(query.scalar_type(), key.scalar_type());
  return {result, logsumexp.to(accumulator_type(logit_type))};
}

std::tuple<at::Tensor, at::Tensor> attention_logit_gradients(
    const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const OptionalTensor& rows, const OptionalTensor& columns, const OptionalTensor& bias,
    at::IntArrayRef window) {
  AttentionCall call({query, key, value, rows, columns, bias}, to_window(window), kProduct);
  return backward(call, grad);
}

at::Tensor difference_attention(const at::Tensor& query, const at::Tensor& key,
                                const at::Tensor& value, const OptionalTensor& bias,
                                at::IntArrayRef window) {
  const Inputs inputs = {query, key, value, {}, {}, bias};
  AttentionCall call(inputs, to_window(window), kAbsoluteDifference);
  return forward(call, value.scalar_type(), {});
}

std::tuple<at::Tensor, at::Tensor> difference_logit_gradients(
    const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const OptionalTensor& bias, at::IntArrayRef window) {
  const Inputs inputs = {query, key, value, {}, {}, bias};
  AttentionCall call(inputs, to_window(window), kAbsoluteDifference);
  return backward(call, grad);
}

}  // namespace

}  // namespace mmrednet

TORCH_LIBRARY_IMPL(mmrednet, CPU, m) {
  m.impl("attention", &mmrednet::attention);
  m.impl("attention_logit_gradients", &mmrednet::attention_logit_gradients);
  m.impl("difference_attention", &mmrednet::difference_attention);
  m.impl("difference_logit_gradients", &mmrednet::difference_logit_gradients);
}
