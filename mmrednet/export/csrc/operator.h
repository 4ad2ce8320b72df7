// What the operators of the extension share: the interface of OpenVINO, threads and sizes.

#pragma once

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>
#include <tbb/partitioner.h>

#include <cstdint>
#include <memory>
#include <openvino/core/attribute_visitor.hpp>
#include <openvino/core/partial_shape.hpp>
#include <openvino/op/op.hpp>
#include <openvino/runtime/tensor.hpp>
#include <vector>

#include "integers.h"
#include "kernel_table.h"
#include "params.h"

namespace mmrednet {

using Shapes = std::vector<ov::PartialShape>;

// The kernels of the only instruction set that is compiled.
inline const DtypeKernels& kernels() { return MMREDNET_KERNELS::float32_kernels; }

// An operator with one result, in float32. A derived class has the members
//   static bool has_ranks(const Shapes&)        whether inputs have the right numbers of dimensions
//   ov::PartialShape result_shape(const Shapes&) const
//   void compute(const ov::Tensor& result, const ov::TensorVector& inputs) const
// and its attributes are a struct with a member visit(ov::AttributeVisitor&).
template <class Derived, class Attributes>
class Operator : public ov::op::Op {
 public:
  bool visit_attributes(ov::AttributeVisitor& visitor) override {
    attributes.visit(visitor);
    return true;
  }

  void validate_and_infer_types() override {
    Shapes shapes;
    for (size_t index = 0; index < get_input_size(); ++index) {
      const auto type = get_input_element_type(index);
      NODE_VALIDATION_CHECK(this, type.is_dynamic() || type == ov::element::f32, "input ", index,
                            " must be of float32, got ", type);
      shapes.push_back(get_input_partial_shape(index));
      NODE_VALIDATION_CHECK(this, shapes.back().rank().is_static(), "input ", index,
                            " must have a known number of dimensions");
    }
    NODE_VALIDATION_CHECK(this, Derived::has_ranks(shapes), "inputs have other numbers of ",
                          "dimensions than the operator takes");
    set_output_type(0, ov::element::f32, self().result_shape(shapes));
  }

  std::shared_ptr<ov::Node> clone_with_new_inputs(const ov::OutputVector& inputs) const override {
    const auto node = std::make_shared<Derived>();
    node->set_arguments(inputs);
    node->attributes = attributes;
    node->constructor_validate_and_infer_types();
    return node;
  }

  bool has_evaluate() const override { return true; }

  bool evaluate(ov::TensorVector& outputs, const ov::TensorVector& inputs) const override {
    Shapes shapes;
    for (const ov::Tensor& tensor : inputs) {
      if (tensor.get_element_type() != ov::element::f32) return false;
      shapes.emplace_back(tensor.get_shape());
    }
    outputs[0].set_shape(self().result_shape(shapes).to_shape());
    if (outputs[0].get_size() > 0) self().compute(outputs[0], inputs);
    return true;
  }

  Attributes attributes;

 private:
  const Derived& self() const { return static_cast<const Derived&>(*this); }
};

inline bool ranks_are(const Shapes& shapes, const std::vector<int64_t>& ranks) {
  for (size_t index = 0; index < ranks.size(); ++index)
    if (index >= shapes.size() || shapes[index].rank().get_length() != ranks[index]) return false;
  return true;
}

// The pointers of tensors: those of results are not const.
inline const float* data_of(const ov::Tensor& tensor) {
  return static_cast<const float*>(tensor.data());
}
inline void* result_of(const ov::Tensor& tensor) {
  return const_cast<void*>(static_cast<const void*>(tensor.data()));
}

// The size of a dimension, as the kernels count.
inline int64_t size_of(const ov::Tensor& tensor, size_t dim) {
  return static_cast<int64_t>(tensor.get_shape()[dim]);
}

// Strides of a tensor of five dimensions, or of four, which has no groups. Tensors are contiguous.
inline Strides strides_of(const ov::Tensor& tensor) {
  const size_t rank = tensor.get_shape().size();
  const int64_t width = size_of(tensor, rank - 1), map = width * size_of(tensor, rank - 2);
  const int64_t channels = map * size_of(tensor, rank - 3);
  if (rank == 4) return {channels, 0, map, width, 1};
  return {channels * size_of(tensor, 1), channels, map, width, 1};
}

// The window of the numbers of an attribute; a ninth stands for shifted windows.
inline Window to_window(const std::vector<int64_t>& numbers) {
  OPENVINO_ASSERT(numbers.size() == 8 || numbers.size() == 9, "window must have 8 or 9 numbers");
  const std::vector<int64_t>& n = numbers;
  return {n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n.size() == 9};
}

// Checks the outputs of a window: a wrong size would lead outside the memory of a tensor.
inline void check_outputs(const Window& window, int64_t height, int64_t width, int64_t out_height,
                          int64_t out_width) {
  const int64_t room_h =
      height + 2 * window.padding_h - window.dilation_h * (window.kernel_h - 1) - 1;
  const int64_t room_w =
      width + 2 * window.padding_w - window.dilation_w * (window.kernel_w - 1) - 1;
  OPENVINO_ASSERT(room_h >= 0 && room_w >= 0 && out_height == room_h / window.stride_h + 1 &&
                      out_width == room_w / window.stride_w + 1,
                  "a window has other outputs than the tensors say");
  OPENVINO_ASSERT(!window.shifted || (height >= window.kernel_h && width >= window.kernel_w),
                  "the map must not be smaller than a shifted window");
}

// The parameters of a primitive on a map (B, G, D, H, W) with outputs (Ho, Wo).
inline LocalParams local_params(Primitive primitive, const Window& window, const ov::Tensor& map,
                                int64_t out_height, int64_t out_width) {
  LocalParams p = {};
  p.primitive = primitive;
  p.window = window;
  p.groups = size_of(map, 1);
  p.channels = size_of(map, 2);
  p.height = size_of(map, 3);
  p.width = size_of(map, 4);
  p.out_height = p.result_rows = out_height;
  p.out_width = out_width;
  check_outputs(window, p.height, p.width, out_height, out_width);
  return p;
}

inline void check_size(const char* name, const ov::Tensor& tensor, int64_t elements) {
  OPENVINO_ASSERT(static_cast<int64_t>(tensor.get_size()) == elements, name, " must have ",
                  elements, " elements, got ", tensor.get_size());
}

// Calls `kernel` with a workspace and a range of items, on OpenVINO's threads. An item takes `work`
// multiply-adds.
template <typename Kernel>
void for_items(int64_t items, int64_t work, int64_t workspace_bytes, const Kernel& kernel) {
  // as in grain_size() of ops/csrc/native.cpp
  constexpr int64_t kMinThreadWork = 32768;
  // vectors that cross a cache line take twice as long
  constexpr int64_t kCacheLine = 64;
  using Range = tbb::blocked_range<int64_t>;
  const size_t grain = static_cast<size_t>(int_max(1, kMinThreadWork / int_max(1, work)));
  // one range for each thread: packed rows of a range are shared
  tbb::parallel_for(
      Range(0, items, grain),
      [&](const Range& range) {
        const std::unique_ptr<char[]> memory(new char[workspace_bytes + kCacheLine]);
        const auto address = reinterpret_cast<uintptr_t>(memory.get());
        const auto offset = (kCacheLine - address % kCacheLine) % kCacheLine;
        kernel(memory.get() + offset, range.begin(), range.end());
      },
      tbb::static_partitioner());
}

}  // namespace mmrednet
