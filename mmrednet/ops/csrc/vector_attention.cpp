// Vector attention for the CPU: see mmrednet/ops/vector_attention.py and vector_moments.py.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

#include "integers.h"
#include "kernel_table.h"
#include "native.h"
#include "operators.h"
#include "torch_functions.h"
#include "vector_params.h"

namespace mmrednet {

namespace {

using OptionalTensor = std::optional<at::Tensor>;

Strides map_strides(const at::Tensor& map) {
  return {map.stride(0), 0, map.stride(1), map.stride(2), map.stride(3)};
}

VectorRelation to_relation(c10::string_view name, bool patchwise) {
  const std::string_view relation(name.data(), name.size());
  if (patchwise) {
    TORCH_CHECK_VALUE(relation == "concatenation",
                      "the kernel has no patchwise relation of the name ", name);
    return kConcatenation;
  }
  if (relation == "subtraction") return kSubtraction;
  if (relation == "summation") return kSummation;
  TORCH_CHECK_VALUE(relation == "hadamard", "the kernel has no pairwise relation of the name ",
                    name);
  return kHadamard;
}

// What decides how features are made of queries and keys.
struct Options {
  VectorRelation relation;
  bool patchwise;
  int64_t position_channels;
  Window window;
};

// What all directions share: tensors in the dtype of the kernels, and their parameters.
struct VectorCall {
  at::ScalarType type, accumulator;
  at::Tensor query, key, value;
  VectorParams params = {};
  VectorPointers pointers = {};
  // parameters of gamma and others, kept alive while pointers refer to them
  std::vector<at::Tensor> tensors;

  VectorCall(VectorMode mode, const at::Tensor& queries, const at::Tensor& keys,
             const OptionalTensor& values, const Options& options) {
    check_maps(queries, keys, values, options);
    type = kernel_type(queries.scalar_type(), keys.scalar_type());
    if (values) type = kernel_type(type, values->scalar_type());
    accumulator = accumulator_type(type);
    query = queries.to(type);
    key = keys.to(type);
    pointers.query = query.const_data_ptr();
    pointers.key = key.const_data_ptr();
    params.mode = mode;
    params.relation = options.relation;
    params.patchwise = options.patchwise;
    params.window = options.window;
    params.channels = key.size(1);
    params.content = params.channels - options.position_channels;
    params.features = params.channels * (options.patchwise ? num_taps(options.window) + 1 : 1);
    params.images = key.size(0);
    params.height = key.size(2);
    params.width = key.size(3);
    params.out_height = query.size(2);
    params.out_width = query.size(3);
    params.query = map_strides(query);
    params.key = map_strides(key);
    if (!values) return;
    value = values->to(type);
    pointers.value = value.const_data_ptr();
    params.value = map_strides(value);
    params.value_channels = value.size(1);
  }

  static void check_maps(const at::Tensor& query, const at::Tensor& key,
                         const OptionalTensor& value, const Options& options) {
    TORCH_CHECK_VALUE(key.dim() == 4 && key.size(2) > 0 && key.size(3) > 0,
                      "key must have 4 dimensions and at least one position, got ", key.sizes());
    const auto outputs = output_size(options.window, key.sizes().slice(2));
    check_sizes("query", query, {key.size(0), key.size(1), outputs[0], outputs[1]});
    TORCH_CHECK_VALUE(
        options.position_channels >= 0 && options.position_channels <= key.size(1) &&
            (!options.patchwise || options.position_channels == 0),
        "position_channels must lie between 0 and the number of channels, and be 0 if patchwise, "
        "got ",
        options.position_channels);
    TORCH_CHECK_VALUE(!value || value->dim() == 4, "value must have 4 dimensions");
    if (value)
      check_sizes("value", *value, {key.size(0), value->size(1), key.size(2), key.size(3)});
  }

  // Returns a parameter in the accumulator type; `pointer` refers to it.
  at::Tensor keep(const at::Tensor& tensor, const void** pointer = nullptr) {
    tensors.push_back(tensor.to(accumulator).contiguous());
    if (pointer) *pointer = tensors.back().const_data_ptr();
    return tensors.back();
  }

  at::TensorOptions accumulator_options() const { return key.options().dtype(accumulator); }

  // Patchwise, kernels take the features tap by tap, and parameters have them channel by channel.
  at::Tensor by_tap(const at::Tensor& features) const {
    return reordered(features, params.channels, num_taps(params.window));
  }
  at::Tensor by_channel(const at::Tensor& features) const {
    return reordered(features, num_taps(params.window), params.channels);
  }

  void set_norm1(const at::Tensor& scale, const at::Tensor& shift) {
    check_sizes("scale1", scale, {params.features});
    check_sizes("shift1", shift, {params.features});
    keep(by_tap(scale), &pointers.scale1);
    keep(by_tap(shift), &pointers.shift1);
  }

  // The first layer; the second norm is folded into it.
  void set_layer1(const at::Tensor& weight, const at::Tensor& scale, const at::Tensor& shift) {
    params.has_hidden = true;
    params.hidden = weight.dim() == 2 ? weight.size(0) : 0;
    check_sizes("weight1", weight, {params.hidden, params.features});
    check_sizes("scale2", scale, {params.hidden});
    check_sizes("shift2", shift, {params.hidden});
    const at::Tensor folded = keep(
        by_tap(weight.to(accumulator).mul(scale.to(accumulator).unsqueeze(1))), &pointers.weight1);
    keep(shift, &pointers.bias1);
    if (is_backward()) keep(folded.t(), &pointers.weight1_t);
  }

  void set_layer2(const at::Tensor& weight, const at::Tensor& bias) {
    params.outputs = weight.dim() == 2 ? weight.size(0) : 0;
    check_sizes("weight2", weight, {params.outputs, params.hidden});
    check_sizes("bias2", bias, {params.outputs});
    const int64_t taps = params.patchwise ? num_taps(params.window) : 1;
    params.groups = params.outputs / taps;
    TORCH_CHECK_VALUE(params.groups > 0 && params.outputs % taps == 0 &&
                          params.value_channels % params.groups == 0,
                      "weight2 must have a row for each group of value, and each tap if patchwise, "
                      "got ",
                      weight.sizes(), " for value of sizes ", value.sizes());
    keep(weight, &pointers.weight2);
    keep(bias, &pointers.bias2);
    if (is_backward()) keep(weight.t(), &pointers.weight2_t);
  }

  bool is_backward() const {
    return params.mode == kGradients || params.mode == kStatisticGradients;
  }

  void set_work() { set_strips(params, accumulator_size(type)); }

  // Runs the kernel over strips, or, in the backward pass, over parts.
  void run() {
    const int64_t strips = params.out_width == 0 ? 0 : strip_count(params);
    const int64_t items = is_backward() ? int_min(params.parts, strips) : strips;
    const int64_t work =
        params.strip_rows * params.out_width * num_taps(params.window) * params.features;
    const VectorKernel kernel = kernels_for(type).vector_attention;
    at::parallel_for(0, items, grain_size(work), [&](int64_t begin, int64_t end) {
      std::unique_ptr<char[]> workspace(new char[params.workspace_bytes]);
      kernel(params, pointers, workspace.get(), begin, end);
    });
  }

 private:
  at::Tensor reordered(const at::Tensor& features, int64_t rows, int64_t columns) const {
    if (!params.patchwise) return features;
    const int64_t last = features.dim() - 1;
    const at::Tensor centre = features.narrow(last, 0, params.channels);
    const at::Tensor others =
        features.narrow(last, params.channels, params.features - params.channels);
    const at::Tensor matrix = others.unflatten(last, {rows, columns});
    return concatenated({centre, matrix.transpose(last, last + 1).flatten(last)}, last);
  }
};

// The gradients that both backward passes compute.
struct VectorGradients {
  VectorCall& call;
  at::Tensor query, key_strips, value_strips, sums;

  explicit VectorGradients(VectorCall& vector_call) : call(vector_call) {
    VectorParams& p = call.params;
    const auto options = call.accumulator_options();
    const auto strips = [&](int64_t channels) {
      return new_zeros({strip_count(p), strip_stride(p, channels)}, options);
    };
    query = empty_in_layout_of(call.query, call.query.sizes());
    key_strips = strips(p.channels);
    if (p.mode == kGradients) value_strips = strips(p.value_channels);
    sums = new_zeros({p.parts, vector_sums(p).size}, options);
    p.grad_query = map_strides(query);
    call.pointers.grad_query = query.mutable_data_ptr();
    call.pointers.key_strips = key_strips.mutable_data_ptr();
    if (value_strips.defined()) call.pointers.value_strips = value_strips.mutable_data_ptr();
    call.pointers.sums = sums.mutable_data_ptr();
  }

  // Runs the kernel and adds up the sums of the parts, in order.
  void run() {
    call.run();
    at::Tensor total = sums[0].clone();
    for (int64_t part = 1; part < sums.size(0); ++part) total.add_(sums[part]);
    sums = total;
  }

  // Returns the gradient of keys or values, in the layout and the dtype of `like`.
  at::Tensor map(const at::Tensor& strips, const at::Tensor& like) {
    const VectorParams& p = call.params;
    const at::Tensor result = new_empty(like.sizes(), call.accumulator_options());
    VectorPointers pointers = call.pointers;
    pointers.grad_map = result.mutable_data_ptr();
    const VectorFold fold = kernels_for(call.type).vector_fold;
    const int64_t channels = like.size(1);
    at::parallel_for(0, p.images * channels, grain_size(p.height * p.width),
                     [&](int64_t begin, int64_t end) {
                       fold(p, pointers, strips.mutable_data_ptr(), channels, begin, end);
                     });
    return in_layout_of(like, result.to(like.scalar_type()));
  }

  // Returns a matrix of sums without the padding of its rows.
  at::Tensor matrix(int64_t start, int64_t rows) const {
    const int64_t hidden = call.params.hidden, pitch = round_up(hidden);
    return sums.narrow(0, start, rows * pitch).view({rows, pitch}).narrow(1, 0, hidden);
  }

  // Returns the sums of vectors of partial sums.
  at::Tensor vector(int64_t start, int64_t rows) const {
    return sums.narrow(0, start, rows * kSimdWidth).view({rows, kSimdWidth}).sum(1);
  }

  at::Tensor feature_vector(int64_t start) const {
    return call.by_channel(vector(start, call.params.features));
  }
};

at::Tensor like(const at::Tensor& parameter, const at::Tensor& grad) {
  return grad.to(parameter.scalar_type()).contiguous();
}

// Sets the norm and the first layer, if there are any.
void set_first_layer(VectorCall& call, const OptionalTensor& scale, const OptionalTensor& shift,
                     const OptionalTensor& weight) {
  TORCH_CHECK_VALUE(
      scale.has_value() == weight.has_value() && shift.has_value() == weight.has_value(),
      "scale, shift and weight must be given together");
  if (!weight) return;
  call.set_norm1(*scale, *shift);
  TORCH_CHECK_VALUE(weight->dim() == 2, "weight must have 2 dimensions, got ", weight->sizes());
  const auto sizes = weight->sizes().slice(0, 1);
  call.set_layer1(*weight, new_ones(sizes, call.accumulator_options()),
                  new_zeros(sizes, call.accumulator_options()));
}

// The number of elements that each statistic is made of.
double statistic_elements(const VectorParams& p) {
  const double outputs = static_cast<double>(p.images * p.out_height * p.out_width);
  return outputs * static_cast<double>(p.patchwise ? 1 : num_taps(p.window));
}

// Combines the statistics of strips, in order (Chan et al., 1979). Returns mean and variance.
std::tuple<at::Tensor, at::Tensor> combined(const VectorParams& p, const at::Tensor& means,
                                            const at::Tensor& deviations) {
  at::Tensor mean = new_zeros({means.size(1)}, means.options()),
             deviation = new_zeros(mean.sizes(), mean.options());
  const int64_t vectors = p.patchwise ? 1 : num_taps(p.window);
  double count = 0;
  for (int64_t i = 0; i < means.size(0); ++i) {
    const int64_t first_row = i % p.image_strips * p.strip_rows;
    const int64_t rows = int_min(p.strip_rows, p.out_height - first_row);
    const double added = static_cast<double>(rows * p.out_width * vectors);
    count += added;
    const at::Tensor difference = means[i].sub(mean);
    mean.add_(difference, added / count);
    deviation.add_(deviations[i]).add_(difference.square(), added * (count - added) / count);
  }
  // statistics of nothing are not a number, as torch has it
  if (count == 0) mean.fill_(NAN);
  return {mean, deviation.div(count)};
}

}  // namespace

at::Tensor vector_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const at::Tensor& scale1, const at::Tensor& shift1,
                            const at::Tensor& weight1, const at::Tensor& scale2,
                            const at::Tensor& shift2, const at::Tensor& weight2,
                            const at::Tensor& bias2, c10::string_view relation, bool patchwise,
                            int64_t position_channels, at::IntArrayRef window) {
  const Options options = {to_relation(relation, patchwise), patchwise, position_channels,
                           to_window(window)};
  VectorCall call(kResult, query, key, value, options);
  call.set_norm1(scale1, shift1);
  call.set_layer1(weight1, scale2, shift2);
  call.set_layer2(weight2, bias2);
  call.set_work();
  const at::Tensor result =
      empty_in_layout_of(call.value, {key.size(0), value.size(1), query.size(2), query.size(3)});
  call.params.result = map_strides(result);
  call.pointers.result = result.mutable_data_ptr();
  call.run();
  return result.to(value.scalar_type());
}

using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                             at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Gradients vector_attention_backward(const at::Tensor& grad, const at::Tensor& query,
                                    const at::Tensor& key, const at::Tensor& value,
                                    const at::Tensor& scale1, const at::Tensor& shift1,
                                    const at::Tensor& weight1, const at::Tensor& scale2,
                                    const at::Tensor& shift2, const at::Tensor& weight2,
                                    const at::Tensor& bias2, c10::string_view relation,
                                    bool patchwise, int64_t position_channels,
                                    at::IntArrayRef window) {
  const Options options = {to_relation(relation, patchwise), patchwise, position_channels,
                           to_window(window)};
  VectorCall call(kGradients, query, key, value, options);
  call.set_norm1(scale1, shift1);
  call.set_layer1(weight1, scale2, shift2);
  call.set_layer2(weight2, bias2);
  call.set_work();
  check_sizes("grad", grad, {key.size(0), value.size(1), query.size(2), query.size(3)});
  const at::Tensor grad_output = grad.to(call.type);
  call.params.grad = map_strides(grad_output);
  call.pointers.grad = grad_output.const_data_ptr();
  VectorGradients grads(call);
  grads.run();

  const VectorParams& p = call.params;
  const VectorSums at = vector_sums(p);
  // the gradient of the first layer with the second norm folded in
  const at::Tensor folded = call.by_channel(grads.matrix(at.weight1, p.features).t());
  const at::Tensor wide1 = weight1.to(call.accumulator), wide2 = scale2.to(call.accumulator);
  return {in_layout_of(query, grads.query.to(query.scalar_type())),
          grads.map(grads.key_strips, key),
          grads.map(grads.value_strips, value),
          like(scale1, grads.feature_vector(at.scale1)),
          like(shift1, grads.feature_vector(at.shift1)),
          like(weight1, folded.mul(wide2.unsqueeze(1))),
          like(scale2, folded.mul(wide1).sum(1)),
          like(shift2, grads.vector(at.shift2, p.hidden)),
          like(weight2, grads.matrix(at.weight2, p.outputs)),
          like(bias2, grads.vector(at.bias2, p.outputs))};
}

std::tuple<at::Tensor, at::Tensor> vector_moments(
    const at::Tensor& query, const at::Tensor& key, const OptionalTensor& scale,
    const OptionalTensor& shift, const OptionalTensor& weight, c10::string_view relation,
    bool patchwise, int64_t position_channels, at::IntArrayRef window) {
  const Options options = {to_relation(relation, patchwise), patchwise, position_channels,
                           to_window(window)};
  VectorCall call(kStatistics, query, key, {}, options);
  set_first_layer(call, scale, shift, weight);
  call.set_work();
  const VectorParams& p = call.params;
  const int64_t rows = p.has_hidden ? p.hidden : p.features;
  const auto wide = key.options().dtype(at::kDouble);
  const at::Tensor means = new_zeros({strip_count(p), rows}, wide);
  const at::Tensor deviations = new_zeros({strip_count(p), rows}, wide);
  call.pointers.means = means.mutable_data_ptr<double>();
  call.pointers.deviations = deviations.mutable_data_ptr<double>();
  call.run();
  auto [mean, variance] = combined(p, means, deviations);
  if (!p.has_hidden) {
    mean = call.by_channel(mean);
    variance = call.by_channel(variance);
  }
  return {mean.to(call.accumulator), variance.to(call.accumulator)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> vector_moments_backward(
    const at::Tensor& grad_mean, const at::Tensor& grad_variance, const at::Tensor& mean,
    const at::Tensor& query, const at::Tensor& key, const OptionalTensor& scale,
    const OptionalTensor& shift, const OptionalTensor& weight, c10::string_view relation,
    bool patchwise, int64_t position_channels, at::IntArrayRef window) {
  const Options options = {to_relation(relation, patchwise), patchwise, position_channels,
                           to_window(window)};
  VectorCall call(kStatisticGradients, query, key, {}, options);
  set_first_layer(call, scale, shift, weight);
  call.set_work();
  const VectorParams& p = call.params;
  const int64_t rows = p.has_hidden ? p.hidden : p.features;
  for (const auto& tensor : {grad_mean, grad_variance, mean})
    check_sizes("statistics and their gradients", tensor, {rows});
  // the gradient of an element x is (grad_mean + 2 grad_variance (x - mean)) / elements
  const double elements = statistic_elements(p);
  const at::Tensor factor = grad_variance.to(at::kDouble).mul(2 / elements);
  const at::Tensor offset =
      grad_mean.to(at::kDouble).div(elements).sub(factor.mul(mean.to(at::kDouble)));
  const auto ordered = [&](const at::Tensor& x) { return p.has_hidden ? x : call.by_tap(x); };
  call.keep(ordered(factor), &call.pointers.factor);
  call.keep(ordered(offset), &call.pointers.offset);
  VectorGradients grads(call);
  grads.run();

  const VectorSums at = vector_sums(p);
  // results of an operator must not share memory
  const auto none = [&] { return new_empty({0}, query.options()); };
  const at::Tensor grad_query = in_layout_of(query, grads.query.to(query.scalar_type()));
  const at::Tensor grad_key = grads.map(grads.key_strips, key);
  if (!weight) return {grad_query, grad_key, none(), none(), none()};
  const at::Tensor grad_weight = call.by_channel(grads.matrix(at.weight1, p.features).t());
  return {grad_query, grad_key, like(*scale, grads.feature_vector(at.scale1)),
          like(*shift, grads.feature_vector(at.shift1)), like(*weight, grad_weight)};
}

}  // namespace mmrednet
