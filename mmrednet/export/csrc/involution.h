// mmrednet::Involution, see mmrednet/ops/involution.py.

#pragma once

#include "operator.h"
#include "workspace.h"

namespace mmrednet {

struct InvolutionAttributes {
  std::vector<int64_t> window;
  int64_t relu = 0;

  void visit(ov::AttributeVisitor& visitor) {
    visitor.on_attribute("window", window);
    visitor.on_attribute("relu", relu);
  }
};

// Inputs: value (B, G, D, H, W), hidden (B, R, Ho, Wo), weight (G * K, R), bias (G * K), and, if
// scale and shift follow the sums, both as (G * D).
class Involution : public Operator<Involution, InvolutionAttributes> {
 public:
  OPENVINO_OP("Involution", "mmrednet");

  static bool has_ranks(const Shapes& shapes) {
    return ranks_are(shapes, {5, 4, 2, 1}) && (shapes.size() == 4 || shapes.size() == 6);
  }

  ov::PartialShape result_shape(const Shapes& shapes) const {
    const ov::PartialShape &value = shapes[0], &hidden = shapes[1];
    return {value[0], value[1], value[2], hidden[2], hidden[3]};
  }

  void compute(const ov::Tensor& result, const ov::TensorVector& inputs) const {
    const ov::Tensor &value = inputs[0], &hidden = inputs[1];
    InvolutionParams params = {};
    LocalParams& p = params.local;
    p = local_params(kAggregate, to_window(attributes.window), value, size_of(hidden, 2),
                     size_of(hidden, 3));
    p.first = strides_of(value);
    p.result = strides_of(result);
    p.cached_groups = 1;
    params.hidden_channels = size_of(hidden, 1);
    params.hidden_strides = strides_of(hidden);
    set_tiles(params, sizeof(float));
    check_inputs(params, inputs);

    const int64_t taps = num_taps(p.window);
    const InvolutionPointers pointers = pointers_of(result, inputs);
    const int64_t work = params.tile_size * taps * (p.channels + params.hidden_channels);
    for_items(size_of(value, 0) * p.groups * params.tiles, work, params.workspace_bytes,
              [&](void* workspace, int64_t begin, int64_t end) {
                kernels().involution(params, pointers, workspace, begin, end);
              });
  }

 private:
  static void check_inputs(const InvolutionParams& params, const ov::TensorVector& inputs) {
    const LocalParams& p = params.local;
    const int64_t rows = p.groups * num_taps(p.window);
    OPENVINO_ASSERT(size_of(inputs[0], 0) == size_of(inputs[1], 0),
                    "value and hidden must have the same batch");
    check_size("weight", inputs[2], rows * params.hidden_channels);
    check_size("bias", inputs[3], rows);
    for (size_t index = 4; index < inputs.size(); ++index)
      check_size("scale and shift", inputs[index], p.groups * p.channels);
  }

  InvolutionPointers pointers_of(const ov::Tensor& result, const ov::TensorVector& inputs) const {
    InvolutionPointers pointers = {};
    pointers.value = data_of(inputs[0]);
    pointers.hidden = data_of(inputs[1]);
    pointers.weight = data_of(inputs[2]);
    pointers.bias = data_of(inputs[3]);
    if (inputs.size() == 6) {
      pointers.scale = data_of(inputs[4]);
      pointers.shift = data_of(inputs[5]);
      pointers.relu = attributes.relu != 0;
    }
    pointers.result = result_of(result);
    return pointers;
  }
};

}  // namespace mmrednet
