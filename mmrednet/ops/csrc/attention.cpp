// Local attention as an operator of torch.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <tuple>

#include "native.h"

namespace {

using Optional = std::optional<at::Tensor>;

// for each head, one line for each row or column of the window
at::Tensor lines_of(const at::Tensor& table, at::ScalarType type) { return table.to(type).transpose(1, 2).contiguous(); }

const void* pointer(const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }

mmrednet::Problem problem(mmrednet::Kind kind, const at::Tensor& map, at::IntArrayRef outputs, at::IntArrayRef window) {
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

std::tuple<at::Tensor, at::Tensor> attention(const at::Tensor& query_given, const at::Tensor& key_given,
                                             const at::Tensor& value_given, const Optional& rows_given,
                                             const Optional& columns_given, const Optional& bias_given,
                                             at::IntArrayRef window) {
  TORCH_CHECK(query_given.dim() == 5 && key_given.dim() == 5 && value_given.dim() == 5, "inputs must have 5 dimensions");
  const auto promoted = c10::promoteTypes(query_given.scalar_type(), key_given.scalar_type());
  const auto type = mmrednet::kernel_type(promoted, value_given.scalar_type());
  const auto sums = type == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor query = query_given.to(type), key = key_given.to(type), value = value_given.to(type);
  at::Tensor rows, columns, bias;
  if (rows_given && columns_given) rows = lines_of(*rows_given, sums), columns = lines_of(*columns_given, sums);
  if (bias_given) bias = bias_given->to(sums).contiguous();
  const auto outputs = query.sizes().slice(3);
  at::Tensor result = mmrednet::empty_in_layout_of(
      value, {value.size(0), value.size(1), value.size(2), outputs[0], outputs[1]});
  at::Tensor logsumexp = at::empty({query.size(0), query.size(1), outputs[0], outputs[1]}, query.options().dtype(sums));
  mmrednet::Attention q;
  q.keys = problem(mmrednet::kCorrelate, key, outputs, window);
  q.values = problem(mmrednet::kAggregate, value, outputs, window);
  q.keys.first = mmrednet::view(query);
  q.keys.second = mmrednet::view(key);
  q.values.first = mmrednet::view(value);
  q.values.result = mmrednet::view(result);
  const int64_t number = mmrednet::sum_bytes(type);
  q.keys.held = std::min(mmrednet::held_groups(q.keys, q.keys.second, number),
                         mmrednet::held_groups(q.values, q.values.first, number));
  q.scratch = mmrednet::scratch_bytes(q, number);
  const mmrednet::AttentionData data = {query.const_data_ptr(), key.const_data_ptr(), value.const_data_ptr(),
                                        pointer(rows), pointer(columns), pointer(bias),
                                        result.mutable_data_ptr(), logsumexp.mutable_data_ptr()};
  const auto run = mmrednet::kernels_for(type).attention;
  const int64_t work = (key.size(2) + value.size(2)) * outputs[1] * window[0] * window[1];
  const int64_t grain = std::max<int64_t>(1, mmrednet::kGrain / std::max<int64_t>(1, work));
  at::parallel_for(0, logsumexp.numel() / std::max<int64_t>(1, outputs[1]), grain, [&](int64_t begin, int64_t end) {
    std::unique_ptr<char[]> scratch(new char[q.scratch]);
    run(q, data, scratch.get(), begin, end);
  });
  return {result.to(value_given.scalar_type()), logsumexp.to(promoted == at::kDouble ? at::kDouble : at::kFloat)};
}

}  // namespace

TORCH_LIBRARY_IMPL(mmrednet, CPU, m) { m.impl("attention", &attention); }
