// mmrednet::AxialAttention, see mmrednet/ops/axial.py.

#pragma once

#include "axial_params.h"
#include "operator.h"

namespace mmrednet {

struct AxialAttributes {
  std::vector<int64_t> terms;
  int64_t key_channels = 0, span = 0, value_position = 0;

  void visit(ov::AttributeVisitor& visitor) {
    visitor.on_attribute("terms", terms);
    visitor.on_attribute("key_channels", key_channels);
    visitor.on_attribute("span", span);
    visitor.on_attribute("value_position", value_position);
  }
};

// Inputs: lines (B, N, 2 E + D, J, L), relative (2 E + D, 2 T - 1), scale (terms, N) and, if the
// part of positions is added to that of content, its scale (N, D).
class AxialAttention : public Operator<AxialAttention, AxialAttributes> {
 public:
  OPENVINO_OP("AxialAttention", "mmrednet");

  static bool has_ranks(const Shapes& shapes) { return ranks_are(shapes, {5, 2, 2}); }

  ov::PartialShape result_shape(const Shapes& shapes) const {
    const ov::PartialShape& lines = shapes[0];
    const int64_t channels = lines[2].get_length() - 2 * attributes.key_channels;
    const int64_t parts = attributes.value_position && shapes.size() == 3 ? 2 : 1;
    return {lines[0], lines[1], channels * parts, lines[3], lines[4]};
  }

  void compute(const ov::Tensor& result, const ov::TensorVector& inputs) const {
    const AxialParams p = params_of(result, inputs);
    const std::vector<float> table = table_by_distance(p, inputs[1]);
    const std::vector<float> scale = all_terms(p, inputs[2]);
    AxialPointers pointers = {};
    pointers.lines = data_of(inputs[0]);
    pointers.table = table.data();
    pointers.scale = scale.data();
    pointers.result = result_of(result);
    if (p.adds_positions) {
      check_size("position_scale", inputs[3], p.heads * p.value_channels);
      pointers.position_scale = data_of(inputs[3]);
    }
    const int64_t keys = int_min(p.length, 2 * p.reach + 1);
    const int64_t work = kSimdWidth * p.length * keys * line_channels(p);
    const int64_t bytes = axial_forward_elements(p) * static_cast<int64_t>(sizeof(float));
    for_items(work_items(p), work, bytes, [&](void* workspace, int64_t begin, int64_t end) {
      kernels().axial(p, pointers, workspace, begin, end);
    });
  }

 private:
  AxialParams params_of(const ov::Tensor& result, const ov::TensorVector& inputs) const {
    const ov::Tensor& lines = inputs[0];
    AxialParams p = {};
    p.lines = strides_of(lines);
    p.result = strides_of(result);
    p.images = size_of(lines, 0);
    p.heads = size_of(lines, 1);
    p.key_channels = attributes.key_channels;
    p.value_channels = size_of(lines, 2) - 2 * p.key_channels;
    p.image_lines = size_of(lines, 3);
    p.length = size_of(lines, 4);
    p.adds_positions = inputs.size() == 4;
    p.parts = attributes.value_position && !p.adds_positions ? 2 : 1;
    p.reach = attributes.span > 0 ? int_min(attributes.span / 2, p.length) : p.length;
    OPENVINO_ASSERT(p.key_channels > 0 && p.value_channels > 0,
                    "key_channels must be positive and leave channels for values");
    return p;
  }

  // The column of a table of 2 T - 1 distances; those beyond its ends have the last column.
  static int64_t column_of(int64_t distance, int64_t columns) {
    const int64_t end = columns / 2;
    return int_max(-end, int_min(distance, end)) + end;
  }

  // Returns the table (2 * padded length - 1, channels) for the distances i - m of all pairs. Keys
  // have the distance m - i.
  static std::vector<float> table_by_distance(const AxialParams& p, const ov::Tensor& relative) {
    const int64_t columns = size_of(relative, 1), channels = line_channels(p);
    check_size("relative", relative, channels * columns);
    const int64_t rows = table_rows(p), end = rows / 2, keys = p.key_channels;
    std::vector<float> table(static_cast<size_t>(rows * channels));
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t channel = 0; channel < channels; ++channel) {
        const bool is_key = channel >= keys && channel < 2 * keys;
        const int64_t column = column_of(is_key ? end - row : row - end, columns);
        table[row * channels + channel] = data_of(relative)[channel * columns + column];
      }
    return table;
  }

  // Returns rows of scales for all three terms; those that are not asked for are zero.
  std::vector<float> all_terms(const AxialParams& p, const ov::Tensor& scale) const {
    const int64_t count = static_cast<int64_t>(attributes.terms.size());
    check_size("scale", scale, count * p.heads);
    std::vector<float> result(static_cast<size_t>(kAxialTerms * p.heads));
    for (int64_t index = 0; index < count; ++index) {
      const int64_t term = attributes.terms[index];
      OPENVINO_ASSERT(term >= 0 && term < kAxialTerms, "terms must lie between 0 and 2");
      for (int64_t head = 0; head < p.heads; ++head)
        result[term * p.heads + head] = data_of(scale)[index * p.heads + head];
    }
    return result;
  }
};

}  // namespace mmrednet
