// mmrednet::VectorAttention, see mmrednet/ops/vector_attention.py.

#pragma once

#include <string>

#include "operator.h"
#include "vector_params.h"

namespace mmrednet {

struct VectorAttributes {
  std::vector<int64_t> window;
  std::string relation;
  int64_t patchwise = 0, position_channels = 0;

  void visit(ov::AttributeVisitor& visitor) {
    visitor.on_attribute("window", window);
    visitor.on_attribute("relation", relation);
    visitor.on_attribute("patchwise", patchwise);
    visitor.on_attribute("position_channels", position_channels);
  }
};

// Inputs: query (B, R, Ho, Wo), key (B, R, H, W), value (B, C, H, W), and the parameters of gamma:
// scale1, shift1, weight1, scale2, shift2, weight2 and bias2.
class VectorAttention : public Operator<VectorAttention, VectorAttributes> {
 public:
  OPENVINO_OP("VectorAttention", "mmrednet");

  static bool has_ranks(const Shapes& shapes) {
    return shapes.size() == 10 && ranks_are(shapes, {4, 4, 4, 1, 1, 2, 1, 1, 2, 1});
  }

  ov::PartialShape result_shape(const Shapes& shapes) const {
    const ov::PartialShape &query = shapes[0], &value = shapes[2];
    return {value[0], value[1], query[2], query[3]};
  }

  void compute(const ov::Tensor& result, const ov::TensorVector& inputs) const {
    const VectorParams params = params_of(result, inputs);
    check_inputs(params, inputs);
    const std::vector<float> ones(static_cast<size_t>(params.hidden), 1.0F);
    const auto scale1 = by_tap(params, inputs[3], ones.data());
    const auto shift1 = by_tap(params, inputs[4], ones.data());
    // the second norm is folded into the first layer
    const auto weight1 = by_tap(params, inputs[5], data_of(inputs[6]));
    VectorPointers pointers = {};
    pointers.query = data_of(inputs[0]);
    pointers.key = data_of(inputs[1]);
    pointers.value = data_of(inputs[2]);
    pointers.scale1 = scale1.data();
    pointers.shift1 = shift1.data();
    pointers.weight1 = weight1.data();
    pointers.bias1 = data_of(inputs[7]);
    pointers.weight2 = data_of(inputs[8]);
    pointers.bias2 = data_of(inputs[9]);
    pointers.result = result_of(result);
    const int64_t work =
        params.strip_rows * params.out_width * num_taps(params.window) * params.features;
    for_items(strip_count(params), work, params.workspace_bytes,
              [&](void* workspace, int64_t begin, int64_t end) {
                kernels().vector_attention(params, pointers, workspace, begin, end);
              });
  }

 private:
  VectorRelation to_relation() const {
    const std::string& relation = attributes.relation;
    if (attributes.patchwise) {
      OPENVINO_ASSERT(relation == "concatenation", "there is no patchwise kernel for ", relation);
      return kConcatenation;
    }
    if (relation == "subtraction") return kSubtraction;
    if (relation == "summation") return kSummation;
    OPENVINO_ASSERT(relation == "hadamard", "there is no pairwise kernel for ", relation);
    return kHadamard;
  }

  VectorParams params_of(const ov::Tensor& result, const ov::TensorVector& inputs) const {
    const ov::Tensor &query = inputs[0], &key = inputs[1], &value = inputs[2];
    VectorParams p = {};
    p.mode = kResult;
    p.relation = to_relation();
    p.patchwise = attributes.patchwise != 0;
    p.window = to_window(attributes.window);
    p.channels = size_of(key, 1);
    p.content = p.channels - attributes.position_channels;
    const int64_t taps = num_taps(p.window);
    p.features = p.channels * (p.patchwise ? taps + 1 : 1);
    p.has_hidden = true;
    p.hidden = size_of(inputs[5], 0);
    p.outputs = size_of(inputs[8], 0);
    p.groups = p.outputs / (p.patchwise ? taps : 1);
    p.images = size_of(key, 0);
    p.height = size_of(key, 2);
    p.width = size_of(key, 3);
    p.out_height = size_of(query, 2);
    p.out_width = size_of(query, 3);
    p.value_channels = size_of(value, 1);
    p.query = strides_of(query);
    p.key = strides_of(key);
    p.value = strides_of(value);
    p.result = strides_of(result);
    set_strips(p, sizeof(float));
    return p;
  }

  static void check_inputs(const VectorParams& p, const ov::TensorVector& inputs) {
    check_outputs(p.window, p.height, p.width, p.out_height, p.out_width);
    const int64_t outputs = p.images * p.out_height * p.out_width;
    check_size("query", inputs[0], p.channels * outputs);
    check_size("value", inputs[2], p.images * p.value_channels * p.height * p.width);
    check_size("scale1", inputs[3], p.features);
    check_size("shift1", inputs[4], p.features);
    check_size("weight1", inputs[5], p.hidden * p.features);
    check_size("scale2", inputs[6], p.hidden);
    check_size("shift2", inputs[7], p.hidden);
    check_size("weight2", inputs[8], p.outputs * p.hidden);
    check_size("bias2", inputs[9], p.outputs);
    OPENVINO_ASSERT(p.content >= 0 && p.groups > 0 && p.value_channels % p.groups == 0,
                    "weight2 must have a row for each group of value, and each tap if patchwise");
  }

  // Returns rows of features, each times its factor. Patchwise, kernels take the features of
  // neighbours tap by tap, and parameters have them channel by channel.
  static std::vector<float> by_tap(const VectorParams& p, const ov::Tensor& features,
                                   const float* factors) {
    const int64_t taps = p.patchwise ? num_taps(p.window) : 0;
    std::vector<float> result(features.get_size());
    const int64_t rows = static_cast<int64_t>(result.size()) / p.features;
    for (int64_t row = 0; row < rows; ++row) {
      const float* source = data_of(features) + row * p.features;
      float* target = result.data() + row * p.features;
      for (int64_t channel = 0; channel < p.channels; ++channel) {
        target[channel] = source[channel] * factors[row];
        for (int64_t tap = 0; tap < taps; ++tap)
          target[p.channels * (tap + 1) + channel] =
              source[p.channels + channel * taps + tap] * factors[row];
      }
    }
    return result;
  }
};

}  // namespace mmrednet
