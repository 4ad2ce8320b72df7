// Attention along lines for the CPU: see mmrednet/ops/axial.py.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <tuple>

#include "axial_params.h"
#include "integers.h"
#include "kernel_table.h"
#include "native.h"
#include "operators.h"
#include "params.h"
#include "torch_functions.h"

namespace mmrednet {

namespace {

// Parts of the sums over lines: enough to keep many threads busy. Their number depends on the sizes
// alone, so that results do not depend on the number of threads.
constexpr int64_t kMaxChunks = 32;

void check_inputs(const at::Tensor& lines, const at::Tensor& relative, int64_t key_channels,
                  at::IntArrayRef terms, int64_t span) {
  TORCH_CHECK_VALUE(lines.dim() == 5, "lines must have 5 dimensions, got ", lines.sizes());
  const int64_t channels = lines.size(2);
  TORCH_CHECK_VALUE(key_channels > 0 && 2 * key_channels < channels,
                    "key_channels must be positive and leave channels for values, got ",
                    key_channels, " of ", channels);
  TORCH_CHECK_VALUE(lines.size(1) > 0 && lines.size(4) > 0,
                    "lines must have heads and positions, got ", lines.sizes());
  TORCH_CHECK_VALUE(relative.dim() == 2 && relative.size(1) % 2 == 1,
                    "relative must have an odd number of distances, got ", relative.sizes());
  check_sizes("relative", relative, {channels, relative.size(1)});
  TORCH_CHECK_VALUE(span >= 0, "span must not be negative, got ", span);
  TORCH_CHECK_VALUE(!terms.empty(), "terms must not be empty");
  for (const int64_t term : terms)
    TORCH_CHECK_VALUE(term >= 0 && term < kAxialTerms, "terms must lie between 0 and 2, got ",
                      terms);
}

AxialParams axial_params(const at::Tensor& lines, int64_t key_channels, int64_t span) {
  AxialParams p = {};
  p.images = lines.size(0);
  p.heads = lines.size(1);
  p.key_channels = key_channels;
  p.value_channels = lines.size(2) - 2 * key_channels;
  p.image_lines = lines.size(3);
  p.length = lines.size(4);
  p.parts = 1;
  p.reach = span > 0 ? int_min(span / 2, p.length) : p.length;
  p.chunks = int_min(work_items(p), kMaxChunks);
  return p;
}

// The column of a table for a distance.
int64_t table_column(int64_t distance, int64_t columns) {
  const int64_t end = columns / 2;
  return int_max(-end, int_min(distance, end)) + end;
}

// What all operators share: tensors in the dtype of the kernels, and their parameters.
struct AxialCall {
  at::ScalarType type, accumulator;
  at::Tensor lines, table, scale;
  AxialParams params;
  AxialPointers pointers = {};

  AxialCall(const at::Tensor& input, const at::Tensor& relative, int64_t key_channels,
            at::IntArrayRef terms, int64_t span) {
    check_inputs(input, relative, key_channels, terms, span);
    type = kernel_type(input.scalar_type(), relative.scalar_type());
    accumulator = accumulator_type(type);
    params = axial_params(input, key_channels, span);
    set_lines(input.to(type));
    table = table_by_distance(relative.to(accumulator));
    pointers.table = table.const_data_ptr();
  }

  void set_lines(const at::Tensor& tensor) {
    lines = tensor;
    params.lines = strides_of(lines);
    pointers.lines = lines.const_data_ptr();
  }

  // Returns the table (2 * padded length - 1, channels) for the distances i - m of all pairs. Keys
  // have the distance m - i.
  at::Tensor table_by_distance(const at::Tensor& relative) {
    const int64_t columns = relative.size(1), keys = params.key_channels;
    const int64_t end = padded_length(params) - 1;
    at::Tensor by_query = new_empty({2 * end + 1}, at::kLong),
               by_key = new_empty(by_query.sizes(), at::kLong);
    for (int64_t w = -end; w <= end; ++w) {
      by_query.mutable_data_ptr<int64_t>()[w + end] = table_column(w, columns);
      by_key.mutable_data_ptr<int64_t>()[w + end] = table_column(-w, columns);
    }
    at::Tensor result = relative.index_select(1, by_query);
    result.narrow(0, keys, keys).copy_(relative.narrow(0, keys, keys).index_select(1, by_key));
    return result.t().contiguous();
  }

  // Returns rows of scales for all three terms; those that are not asked for are zero.
  at::Tensor all_terms(const at::Tensor& tensor, at::IntArrayRef terms) const {
    check_sizes("scale", tensor, {static_cast<int64_t>(terms.size()), params.heads});
    at::Tensor result = new_zeros({kAxialTerms, params.heads}, tensor.options().dtype(accumulator));
    for (size_t index = 0; index < terms.size(); ++index)
      result.select(0, terms[index]).copy_(tensor.select(0, index));
    return result;
  }

  void set_scale(const at::Tensor& tensor, at::IntArrayRef terms) {
    scale = all_terms(tensor, terms);
    pointers.scale = scale.const_data_ptr();
  }

  // Runs a kernel over items, each of `work` multiply-adds, in a workspace of some elements.
  void run(AxialKernel kernel, int64_t items, int64_t work, int64_t elements) const {
    constexpr int64_t kCacheLine = 64;
    at::parallel_for(0, items, grain_size(work), [&](int64_t begin, int64_t end) {
      const int64_t bytes = elements * accumulator_size(type);
      const std::unique_ptr<char[]> workspace(new char[bytes + kCacheLine]);
      // vectors that cross a cache line take twice as long
      const auto address = reinterpret_cast<uintptr_t>(workspace.get());
      const auto offset = (kCacheLine - address % kCacheLine) % kCacheLine;
      kernel(params, pointers, workspace.get() + offset, begin, end);
    });
  }

  // Multiply-adds of a work item, about.
  int64_t item_work() const {
    const int64_t keys = int_min(params.length, 2 * params.reach + 1);
    return kSimdWidth * params.length * keys * line_channels(params);
  }
};

// Gradients, and their sums over chunks of work.
struct AxialSums {
  at::Tensor lines, table, scale;

  explicit AxialSums(AxialCall& call) {
    const AxialParams& p = call.params;
    // the gradients are dense, and kernels take the strides of both to be the same
    call.set_lines(in_layout_of(call.lines, call.lines));
    lines = empty_in_layout_of(call.lines, call.lines.sizes());
    table = new_zeros({p.chunks, table_rows(p), line_channels(p)}, at::kDouble);
    scale = new_zeros({p.chunks, kAxialTerms, p.heads}, at::kDouble);
    call.pointers.grad_lines = lines.mutable_data_ptr();
    call.pointers.table_sums = table.mutable_data_ptr<double>();
    call.pointers.scale_sums = scale.mutable_data_ptr<double>();
  }

  // Returns the gradient of the tables of relative positions: chunks are added in order.
  at::Tensor relative_gradient(const AxialParams& p, const at::Tensor& relative) const {
    const int64_t rows = table_rows(p), channels = line_channels(p), end = padded_length(p) - 1;
    const int64_t columns = relative.size(1);
    at::Tensor result = new_zeros({channels, columns}, at::kDouble);
    double* target = result.mutable_data_ptr<double>();
    const double* source = table.const_data_ptr<double>();
    for (int64_t row = 0; row < p.chunks * rows; ++row, source += channels) {
      const int64_t w = row % rows - end;
      for (int64_t c = 0; c < channels; ++c) {
        const bool is_key = c >= p.key_channels && c < 2 * p.key_channels;
        target[c * columns + table_column(is_key ? -w : w, columns)] += source[c];
      }
    }
    return result.to(relative.scalar_type());
  }

  // Returns the gradient of the scale of some terms.
  at::Tensor scale_gradient(const AxialParams& p, at::IntArrayRef terms,
                            at::ScalarType scalar_type) const {
    at::Tensor sums = new_zeros({kAxialTerms, p.heads}, at::kDouble);
    for (int64_t chunk = 0; chunk < p.chunks; ++chunk) sums += scale.select(0, chunk);
    at::Tensor result = new_empty({static_cast<int64_t>(terms.size()), p.heads}, at::kDouble);
    for (size_t index = 0; index < terms.size(); ++index)
      result.select(0, index).copy_(sums.select(0, terms[index]));
    return result.to(scalar_type);
  }
};

}  // namespace

at::Tensor axial_attention(const at::Tensor& lines, const at::Tensor& relative,
                           const at::Tensor& scale, const at::Tensor&,
                           const std::optional<at::Tensor>& position_scale, int64_t key_channels,
                           at::IntArrayRef terms, int64_t span, bool value_position, int64_t) {
  AxialCall call(lines, relative, key_channels, terms, span);
  AxialParams& p = call.params;
  call.set_scale(scale, terms);
  at::Tensor positions;
  if (position_scale) {
    check_sizes("position_scale", *position_scale, {p.heads, p.value_channels});
    positions = position_scale->to(call.accumulator).contiguous();
    call.pointers.position_scale = positions.const_data_ptr();
    p.adds_positions = true;
  } else {
    p.parts = value_position ? 2 : 1;
  }
  at::Tensor result = empty_in_layout_of(
      call.lines, {p.images, p.heads, p.value_channels * p.parts, p.image_lines, p.length});
  p.result = strides_of(result);
  call.pointers.result = result.mutable_data_ptr();
  call.run(kernels_for(call.type).axial, work_items(p), call.item_work(),
           axial_forward_elements(p));
  return result.to(lines.scalar_type());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> axial_attention_backward(
    const at::Tensor& grad, const at::Tensor& lines, const at::Tensor& relative,
    const at::Tensor& scale, int64_t key_channels, at::IntArrayRef terms, int64_t span,
    bool value_position, int64_t) {
  AxialCall call(lines, relative, key_channels, terms, span);
  AxialParams& p = call.params;
  p.parts = value_position ? 2 : 1;
  call.set_scale(scale, terms);
  check_sizes("grad", grad,
              {p.images, p.heads, p.value_channels * p.parts, p.image_lines, p.length});
  const at::Tensor grads = grad.to(call.type);
  p.result = strides_of(grads);
  call.pointers.grad = grads.const_data_ptr();
  AxialSums sums(call);
  call.run(kernels_for(call.type).axial_backward, p.chunks,
           call.item_work() * ceil_div(work_items(p), int_max(1, p.chunks)),
           axial_backward_elements(p));
  return {sums.lines.to(lines.scalar_type()), sums.relative_gradient(p, relative),
          sums.scale_gradient(p, terms, scale.scalar_type())};
}

std::tuple<at::Tensor, at::Tensor> axial_moments(const at::Tensor& lines,
                                                 const at::Tensor& relative, int64_t key_channels,
                                                 at::IntArrayRef terms, int64_t span, int64_t) {
  AxialCall call(lines, relative, key_channels, terms, span);
  AxialParams& p = call.params;
  const int64_t items = work_items(p);
  at::Tensor parts = new_empty({items, kAxialTerms, 2}, at::kDouble);
  call.pointers.moments = parts.mutable_data_ptr<double>();
  call.run(kernels_for(call.type).axial_moments, items, call.item_work(),
           axial_backward_elements(p));
  const int64_t count = static_cast<int64_t>(terms.size());
  at::Tensor mean = new_empty({count, p.heads}, at::kDouble),
             variance = new_empty(mean.sizes(), at::kDouble);
  for (int64_t index = 0; index < count; ++index)
    for (int64_t head = 0; head < p.heads; ++head) {
      // tiles of lines are added in order (Chan et al., 1979)
      double lanes = 0, first = 0, second = 0;
      for (int64_t item = head; item < items; item += p.heads) {
        const double* part =
            parts.const_data_ptr<double>() + (item * kAxialTerms + terms[index]) * 2;
        const int64_t line = item / p.heads * kSimdWidth;
        const double size = static_cast<double>(int_min(p.images * p.image_lines - line, 16));
        const double step = part[0] - first, total = lanes + size;
        first += step * (size / total);
        second += part[1] + step * step * (lanes * size / total) * pairs_of_a_line(p);
        lanes = total;
      }
      mean.mutable_data_ptr<double>()[index * p.heads + head] = first;
      variance.mutable_data_ptr<double>()[index * p.heads + head] =
          second / (lanes * pairs_of_a_line(p));
    }
  return {mean.to(call.accumulator), variance.to(call.accumulator)};
}

std::tuple<at::Tensor, at::Tensor> axial_moments_backward(
    const at::Tensor& offset, const at::Tensor& slope, const at::Tensor& lines,
    const at::Tensor& relative, int64_t key_channels, at::IntArrayRef terms, int64_t span,
    int64_t) {
  AxialCall call(lines, relative, key_channels, terms, span);
  AxialParams& p = call.params;
  const at::Tensor offsets = call.all_terms(offset, terms), slopes = call.all_terms(slope, terms);
  call.pointers.offset = offsets.const_data_ptr();
  call.pointers.slope = slopes.const_data_ptr();
  AxialSums sums(call);
  call.run(kernels_for(call.type).axial_moments_backward, p.chunks,
           call.item_work() * ceil_div(work_items(p), int_max(1, p.chunks)),
           axial_backward_elements(p));
  return {sums.lines.to(lines.scalar_type()), sums.relative_gradient(p, relative)};
}

}  // namespace mmrednet
