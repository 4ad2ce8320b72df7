// mmrednet::LocalAttention, see mmrednet/ops/attention.py and difference_attention.py.

#pragma once

#include <string>

#include "operator.h"
#include "workspace.h"

namespace mmrednet {

struct LocalAttentionAttributes {
  std::vector<int64_t> window;
  // whether logits are minus the absolute differences of query and key, not their products
  int64_t differences = 0;
  // which of the optional inputs there are
  int64_t has_positions = 0, has_bias = 0;

  void visit(ov::AttributeVisitor& visitor) {
    visitor.on_attribute("window", window);
    visitor.on_attribute("differences", differences);
    visitor.on_attribute("has_positions", has_positions);
    visitor.on_attribute("has_bias", has_bias);
  }
};

// Inputs: query (B, N, D, Ho, Wo), key (B, N, D, H, W), value (B, N, Dv, H, W); the embeddings of
// positions, rows (N, D / 2, Kh) and columns (N, D / 2, Kw), or none; bias (N, taps), or none.
class LocalAttention : public Operator<LocalAttention, LocalAttentionAttributes> {
 public:
  OPENVINO_OP("LocalAttention", "mmrednet");

  static bool has_ranks(const Shapes& shapes) { return ranks_are(shapes, {5, 5, 5}); }

  ov::PartialShape result_shape(const Shapes& shapes) const {
    const ov::PartialShape &query = shapes[0], &value = shapes[2];
    return {value[0], value[1], value[2], query[3], query[4]};
  }

  void compute(const ov::Tensor& result, const ov::TensorVector& inputs) const {
    AttentionParams params = params_of(result, inputs);
    const LocalParams& keys = params.keys;
    AttentionPointers pointers = {};
    pointers.query = data_of(inputs[0]);
    pointers.key = data_of(inputs[1]);
    pointers.value = data_of(inputs[2]);
    pointers.result = result_of(result);

    size_t index = 3;
    std::vector<float> rows, columns;
    if (attributes.has_positions) {
      rows = transposed(inputs[index++], keys, keys.window.kernel_h);
      columns = transposed(inputs[index++], keys, keys.window.kernel_w);
      pointers.rows = rows.data();
      pointers.columns = columns.data();
    }
    if (attributes.has_bias) {
      const int64_t taps = num_taps(keys.window), places = keys.window.shifted ? taps : 1;
      check_size("bias", inputs[index], keys.groups * places * taps);
      pointers.bias = data_of(inputs[index]);
    }
    const int64_t work =
        (keys.channels + params.values.channels) * keys.out_width * num_taps(keys.window);
    for_items(size_of(inputs[0], 0) * keys.groups * keys.result_rows, work, params.workspace_bytes,
              [&](void* workspace, int64_t begin, int64_t end) {
                kernels().attention(params, pointers, workspace, begin, end);
              });
  }

 private:
  AttentionParams params_of(const ov::Tensor& result, const ov::TensorVector& inputs) const {
    const ov::Tensor &query = inputs[0], &key = inputs[1], &value = inputs[2];
    const Window window = to_window(attributes.window);
    const int64_t height = size_of(query, 3), width = size_of(query, 4);
    AttentionParams params = {};
    params.relation = attributes.differences ? kAbsoluteDifference : kProduct;
    params.keys = local_params(kCorrelate, window, key, height, width);
    params.keys.first = strides_of(query);
    params.keys.second = strides_of(key);
    params.values = local_params(kAggregate, window, value, height, width);
    params.values.first = strides_of(value);
    params.values.result = strides_of(result);
    // groups of contiguous maps are not neighbours in memory
    params.keys.cached_groups = params.values.cached_groups = 1;
    params.workspace_bytes = workspace_bytes(params, sizeof(float));

    const LocalParams& keys = params.keys;
    check_size("query", query, size_of(key, 0) * keys.groups * keys.channels * height * width);
    check_size("value", value,
               size_of(key, 0) * keys.groups * params.values.channels * keys.height * keys.width);
    const size_t count = 3 + (attributes.has_positions ? 2 : 0) + (attributes.has_bias ? 1 : 0);
    OPENVINO_ASSERT(inputs.size() == count, "attention must have ", count, " inputs");
    return params;
  }

  // Returns a table (heads, channels / 2, taps) as (heads, taps, channels / 2).
  static std::vector<float> transposed(const ov::Tensor& table, const LocalParams& keys,
                                       int64_t taps) {
    const int64_t half = keys.channels / 2;
    check_size("rows and columns", table, keys.groups * half * taps);
    const float* source = data_of(table);
    std::vector<float> result(table.get_size());
    for (int64_t head = 0; head < keys.groups; ++head)
      for (int64_t channel = 0; channel < half; ++channel)
        for (int64_t tap = 0; tap < taps; ++tap)
          result[(head * taps + tap) * half + channel] =
              source[(head * half + channel) * taps + tap];
    return result;
  }
};

}  // namespace mmrednet
