// Local attention for the CPU: see mmrednet/ops/attention.py and difference_attention.py.

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
  TORCH_CHECK_VALUE(!rows || !window.shifted, "shifted windows have no rows and columns");
  // see bias_by_place() in attention.py
  if (bias) check_sizes("bias", *bias, {heads, bias_elements(window)});
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

// Gradients, in the dtype of the kernels; those of the tables in the accumulator type.
struct Gradients {
  at::Tensor query, key, value, rows, columns, bias;
};

// The backward pass, for some heads of one image at a time: their weights and gradients of logits
// are stored for the scatters that give the gradients of values and keys.
struct AttentionBackward {
  AttentionCall& call;
  at::Tensor grad;
  at::IntArrayRef window;
  Gradients result;
  // sums of the gradients of the tables, (images, heads, bands, elements)
  at::Tensor table_sums;
  // planes of gradients of logits, see AttentionPointers
  int64_t planes;

  AttentionBackward(AttentionCall& attention, const at::Tensor& grad_output,
                    at::IntArrayRef window_numbers)
      : call(attention), grad(grad_output.to(attention.type)), window(window_numbers) {
    AttentionParams& params = call.params;
    const LocalParams &keys = params.keys, &values = params.values;
    check_sizes(
        "grad", grad_output,
        {call.value.size(0), values.groups, values.channels, values.out_height, values.out_width});
    result.query = empty_in_layout_of(call.query, call.query.sizes());
    result.key = empty_in_layout_of(call.key, call.key.sizes());
    result.value = empty_in_layout_of(call.value, call.value.sizes());
    planes = params.relation == kProduct ? 1 : keys.channels;
    // Enough rows that their keys and values are packed for few others, and few enough that the
    // bands of a small map keep some threads busy.
    constexpr int64_t kBandRows = 16;
    params.band_rows = kBandRows;
    params.bands = ceil_div(keys.out_height, kBandRows);
    if (call.rows.defined() || call.bias.defined())
      table_sums = new_empty({call.query.size(0), keys.groups, params.bands, table_elements(keys)},
                             call.query.options().dtype(call.accumulator));
  }

  void run() {
    const LocalParams& keys = call.params.keys;
    // Elements of the weights that are stored at a time. They fit the last-level cache of most
    // processors, while each of the steps has enough work for many threads.
    constexpr int64_t kStored = 1 << 22;
    const int64_t head_elements = num_taps(keys.window) * keys.out_height * keys.out_width;
    const int64_t heads = int_max(1, int_min(keys.groups, kStored / int_max(1, head_elements)));
    for (int64_t image = 0; image < call.query.size(0); ++image)
      for (int64_t head = 0; head < keys.groups; head += heads)
        run_heads(image, head, int_min(heads, keys.groups - head));
    if (table_sums.defined()) add_tables();
  }

 private:
  // Some heads of one image of a tensor.
  static at::Tensor part(const at::Tensor& tensor, int64_t image, int64_t head, int64_t heads) {
    return tensor.narrow(0, image, 1).narrow(1, head, heads);
  }

  static const void* table_from(const at::Tensor& table, int64_t head) {
    return table.defined() ? table.narrow(0, head, table.size(0) - head).const_data_ptr() : nullptr;
  }

  void run_heads(int64_t image, int64_t head, int64_t heads) {
    const LocalParams& keys = call.params.keys;
    const int64_t taps = num_taps(keys.window);
    const auto options = call.query.options();
    const auto planar = [&](int64_t groups) {
      return new_empty({1, groups, taps, keys.out_height, keys.out_width}, options);
    };
    const at::Tensor weight = planar(heads), grad_logits = planar(heads * planes);
    run_kernel(image, head, heads, weight, grad_logits);
    const auto scatter_part = [&](const at::Tensor& target, const at::Tensor& source,
                                  const at::Tensor& weights) {
      scatter_into(part(target, image, head, heads), part(source, image, head, heads), weights,
                   window);
    };
    scatter_part(result.value, grad, weight);
    if (call.params.relation == kProduct) {
      scatter_part(result.key, call.query, grad_logits);
      return;
    }
    // each channel of the keys has its own gradients
    const at::Tensor ones =
        new_ones({1, heads * planes, 1, keys.out_height, keys.out_width}, options);
    at::Tensor grad_key = new_empty({1, heads * planes, 1, keys.height, keys.width}, options);
    scatter_into(grad_key, ones, grad_logits, window);
    part(result.key, image, head, heads)
        .copy_(grad_key.view({1, heads, planes, keys.height, keys.width}));
  }

  void run_kernel(int64_t image, int64_t head, int64_t heads, const at::Tensor& weight,
                  const at::Tensor& grad_logits) {
    AttentionParams params = call.params;
    params.keys.groups = params.values.groups = heads;
    params.keys.cached_groups = params.values.cached_groups = 1;
    params.grad = strides_of(grad);
    params.grad_query = strides_of(result.query);
    params.workspace_bytes = workspace_bytes(params, accumulator_size(call.type));
    AttentionPointers pointers = call.pointers;
    pointers.query = part(call.query, image, head, heads).const_data_ptr();
    pointers.key = part(call.key, image, head, heads).const_data_ptr();
    pointers.value = part(call.value, image, head, heads).const_data_ptr();
    pointers.grad = part(grad, image, head, heads).const_data_ptr();
    pointers.rows = table_from(call.rows, head);
    pointers.columns = table_from(call.columns, head);
    pointers.bias = table_from(call.bias, head);
    pointers.grad_query = part(result.query, image, head, heads).mutable_data_ptr();
    pointers.weight = weight.mutable_data_ptr();
    pointers.grad_logits = grad_logits.mutable_data_ptr();
    if (table_sums.defined())
      pointers.table_sums = part(table_sums, image, head, heads).mutable_data_ptr();
    const AttentionKernel kernel = kernels_for(call.type).attention_gradients;
    at::parallel_for(0, heads * params.bands, 1, [&](int64_t begin, int64_t end) {
      std::unique_ptr<char[]> workspace(new char[params.workspace_bytes]);
      kernel(params, pointers, workspace.get(), begin, end);
    });
  }

  // Adds the sums of all images and bands, in order.
  void add_tables() {
    const LocalParams& keys = call.params.keys;
    const Window& taps = keys.window;
    const int64_t half = keys.channels / 2;
    at::Tensor sums = new_zeros({keys.groups, table_elements(keys)}, table_sums.options());
    for (int64_t image = 0; image < table_sums.size(0); ++image)
      for (int64_t band = 0; band < table_sums.size(2); ++band)
        sums.add_(table_sums.select(0, image).select(1, band));
    const int64_t rows = taps.kernel_h * half, columns = taps.kernel_w * half;
    result.rows =
        sums.narrow(1, 0, rows).reshape({keys.groups, taps.kernel_h, half}).transpose(1, 2);
    result.columns =
        sums.narrow(1, rows, columns).reshape({keys.groups, taps.kernel_w, half}).transpose(1, 2);
    result.bias = sums.narrow(1, rows + columns, bias_elements(taps));
  }
};

// Returns the gradients of all inputs. Those of inputs without outputs are zero.
Gradients backward(AttentionCall& call, const at::Tensor& grad, at::IntArrayRef window) {
  AttentionBackward backward_pass(call, grad, window);
  if (grad.numel() > 0) {
    backward_pass.run();
    return backward_pass.result;
  }
  Gradients result = backward_pass.result;
  for (const at::Tensor* tensor : {&result.query, &result.key, &result.value}) tensor->zero_();
  return result;
}

// Returns a gradient of a table as the op does: zero if nothing was added to it, and empty if there
// is no table.
at::Tensor table_gradient(const OptionalTensor& table, const at::Tensor& grad,
                          const at::Tensor& like) {
  if (!table) return new_empty({0}, like.options());
  if (!grad.defined()) return new_zeros(table->sizes(), table->options());
  return grad.to(table->scalar_type()).contiguous();
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> attention(const at::Tensor& query, const at::Tensor& key,
                                             const at::Tensor& value, const OptionalTensor& rows,
                                             const OptionalTensor& columns,
                                             const OptionalTensor& bias, at::IntArrayRef window) {
  AttentionCall call({query, key, value, rows, columns, bias}, to_window(window, true), kProduct);
  at::Tensor logsumexp = new_empty({query.size(0), query.size(1), query.size(3), query.size(4)},
                                   query.options().dtype(call.accumulator));
  const at::Tensor result = forward(call, value.scalar_type(), logsumexp);
  // the values may be float64 where query and key are not
  const auto logit_type = c10::promoteTypes(query.scalar_type(), key.scalar_type());
  return {result, logsumexp.to(accumulator_type(logit_type))};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
attention_backward(const at::Tensor& grad, const at::Tensor& logsumexp, const at::Tensor& query,
                   const at::Tensor& key, const at::Tensor& value, const OptionalTensor& rows,
                   const OptionalTensor& columns, const OptionalTensor& bias,
                   at::IntArrayRef window) {
  AttentionCall call({query, key, value, rows, columns, bias}, to_window(window, true), kProduct);
  const Gradients grads = backward(call, grad, window);
  return {grads.query.to(query.scalar_type()),           grads.key.to(key.scalar_type()),
          grads.value.to(value.scalar_type()),           table_gradient(rows, grads.rows, query),
          table_gradient(columns, grads.columns, query), table_gradient(bias, grads.bias, query)};
}

at::Tensor difference_attention(const at::Tensor& query, const at::Tensor& key,
                                const at::Tensor& value, const OptionalTensor& bias,
                                at::IntArrayRef window) {
  const Inputs inputs = {query, key, value, {}, {}, bias};
  AttentionCall call(inputs, to_window(window), kAbsoluteDifference);
  return forward(call, value.scalar_type(), {});
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> difference_attention_backward(
    const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const OptionalTensor& bias, at::IntArrayRef window) {
  const Inputs inputs = {query, key, value, {}, {}, bias};
  AttentionCall call(inputs, to_window(window), kAbsoluteDifference);
  const Gradients grads = backward(call, grad, window);
  return {grads.query.to(query.scalar_type()), grads.key.to(key.scalar_type()),
          grads.value.to(value.scalar_type()), table_gradient(bias, grads.bias, query)};
}

}  // namespace mmrednet
