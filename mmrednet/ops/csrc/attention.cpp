// Local attention as an operator of torch.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>

#include "native.h"

namespace {

using Optional = std::optional<at::Tensor>;

// for each head, one line for each row or column of the window
at::Tensor lines_of(const at::Tensor& table, at::ScalarType type) {
  return table.to(type).transpose(1, 2).contiguous();
}

const void* pointer(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

mmrednet::Problem problem(mmrednet::Kind kind, const at::Tensor& map, at::IntArrayRef outputs,
                          at::IntArrayRef window) {
  mmrednet::Problem p = {};
  p.kind = kind;
  p.geometry = mmrednet::geometry(window);
  p.groups = map.size(1);
  p.channels = map.size(2);
  p.height = map.size(3);
  p.width = map.size(4);
  p.out_height = outputs[0];
  p.out_width = outputs[1];
  p.lines = outputs[0];
  return p;
}

void check(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
           const Optional& rows, const Optional& columns, const Optional& bias,
           const mmrednet::Geometry& g) {
  TORCH_CHECK_VALUE(key.dim() == 5 && value.dim() == 5,
                    "key and value must have 5 dimensions, got ", key.sizes(), " and ",
                    value.sizes());
  const auto outputs = mmrednet::output_size(g, key.sizes().slice(3));
  const int64_t heads = key.size(1), half = key.size(2) / 2;
  mmrednet::check_sizes("query", query, {key.size(0), heads, key.size(2), outputs[0], outputs[1]});
  mmrednet::check_sizes("value", value,
                        {key.size(0), heads, value.size(2), key.size(3), key.size(4)});
  TORCH_CHECK_VALUE(rows.has_value() == columns.has_value(),
                    "rows and columns must be given together");
  TORCH_CHECK_VALUE(!rows || key.size(2) % 2 == 0,
                    "query must have an even number of channels for rows and columns, got ",
                    query.sizes());
  if (rows) mmrednet::check_sizes("rows", *rows, {heads, half, g.kernel_h});
  if (columns) mmrednet::check_sizes("columns", *columns, {heads, half, g.kernel_w});
  if (bias) mmrednet::check_sizes("bias", *bias, {heads, g.kernel_h * g.kernel_w});
}

// what both directions share: the tensors in the type of the kernels, and what a kernel is told of
// them
struct Call {
  at::ScalarType type, sums;
  at::Tensor query, key, value, rows, columns, bias;
  mmrednet::Attention q = {};
  mmrednet::AttentionData data = {};

  Call(const at::Tensor& query_given, const at::Tensor& key_given, const at::Tensor& value_given,
       const Optional& rows_given, const Optional& columns_given, const Optional& bias_given,
       at::IntArrayRef window) {
    check(query_given, key_given, value_given, rows_given, columns_given, bias_given,
          mmrednet::geometry(window));
    type =
        mmrednet::kernel_type(c10::promoteTypes(query_given.scalar_type(), key_given.scalar_type()),
                              value_given.scalar_type());
    sums = type == at::kDouble ? at::kDouble : at::kFloat;
    query = query_given.to(type), key = key_given.to(type), value = value_given.to(type);
    if (rows_given && columns_given)
      rows = lines_of(*rows_given, sums), columns = lines_of(*columns_given, sums);
    if (bias_given) bias = bias_given->to(sums).contiguous();
    q.keys = problem(mmrednet::kCorrelate, key, query.sizes().slice(3), window);
    q.values = problem(mmrednet::kAggregate, value, query.sizes().slice(3), window);
    q.keys.first = mmrednet::view(query);
    q.keys.second = mmrednet::view(key);
    q.values.first = mmrednet::view(value);
    data.query = query.const_data_ptr(), data.key = key.const_data_ptr(),
    data.value = value.const_data_ptr();
    data.rows = pointer(rows), data.columns = pointer(columns), data.bias = pointer(bias);
  }

  void run() {
    const int64_t number = mmrednet::sum_bytes(type);
    q.keys.held = std::min(mmrednet::held_groups(q.keys, q.keys.second, number),
                           mmrednet::held_groups(q.values, q.values.first, number));
    q.scratch = mmrednet::scratch_bytes(q, number);
    const mmrednet::Geometry& g = q.keys.geometry;
    const int64_t work =
        (q.keys.channels + q.values.channels) * q.keys.out_width * g.kernel_h * g.kernel_w;
    const int64_t grain = std::max<int64_t>(1, mmrednet::kGrain / std::max<int64_t>(1, work));
    const int64_t lines = q.keys.out_width == 0 ? 0 : query.size(0) * q.keys.groups * q.keys.lines;
    const auto kernel = mmrednet::kernels_for(type).attention;
    at::parallel_for(0, lines, grain, [&](int64_t begin, int64_t end) {
      std::unique_ptr<char[]> scratch(new char[q.scratch]);
      kernel(q, data, scratch.get(), begin, end);
    });
  }
};

std::tuple<at::Tensor, at::Tensor> attention(const at::Tensor& query, const at::Tensor& key,
                                             const at::Tensor& value, const Optional& rows,
                                             const Optional& columns, const Optional& bias,
                                             at::IntArrayRef window) {
  Call call(query, key, value, rows, columns, bias, window);
  at::Tensor result = mmrednet::empty_in_layout_of(
      call.value, {value.size(0), value.size(1), value.size(2), query.size(3), query.size(4)});
  at::Tensor logsumexp = at::empty({query.size(0), query.size(1), query.size(3), query.size(4)},
                                   query.options().dtype(call.sums));
  call.q.values.result = mmrednet::view(result);
  call.data.result = result.mutable_data_ptr(), call.data.logsumexp = logsumexp.mutable_data_ptr();
  call.run();
  const auto promoted = c10::promoteTypes(query.scalar_type(), key.scalar_type());
  return {result.to(value.scalar_type()),
          logsumexp.to(promoted == at::kDouble ? at::kDouble : at::kFloat)};
}

std::tuple<at::Tensor, at::Tensor> logit_gradients(const at::Tensor& grad_given,
                                                   const at::Tensor& query, const at::Tensor& key,
                                                   const at::Tensor& value, const Optional& rows,
                                                   const Optional& columns, const Optional& bias,
                                                   at::IntArrayRef window) {
  Call call(query, key, value, rows, columns, bias, window);
  mmrednet::check_sizes(
      "grad", grad_given,
      {value.size(0), value.size(1), value.size(2), query.size(3), query.size(4)});
  const at::Tensor grad = grad_given.to(call.type);
  at::Tensor weight = mmrednet::empty_in_layout_of(
      call.query.to(call.sums),
      {query.size(0), query.size(1), window[0] * window[1], query.size(3), query.size(4)});
  at::Tensor grad_logits = at::empty_like(weight);
  call.q.backward = true;
  call.q.grad = mmrednet::view(grad);
  call.q.taps = mmrednet::view(weight);
  call.data.grad = grad.const_data_ptr();
  call.data.weight = weight.mutable_data_ptr(),
  call.data.grad_logits = grad_logits.mutable_data_ptr();
  call.run();
  return {weight, grad_logits};
}

}  // namespace

TORCH_LIBRARY_IMPL(mmrednet, CPU, m) {
  m.impl("attention", &attention);
  m.impl("attention_logit_gradients", &logit_gradients);
}
