// What the operators of torch share: the kernels for this processor, and results laid out as their
// inputs are.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <array>

#include "params.h"

// the widest that was built and that this processor has, no wider than MMREDNET_CPU_CAPABILITY if
// that is set
const mmrednet::Kernels& mmrednet_kernels();

namespace mmrednet {

// multiply-adds that are worth a thread
constexpr int64_t kGrain = 32768;

// sums are taken in float32 or wider: half precision that the kernels do not know is widened first
inline at::ScalarType kernel_type(at::ScalarType first, at::ScalarType second) {
  const auto type = c10::promoteTypes(first, second);
  return type == at::kDouble || type == at::kBFloat16 ? type : at::kFloat;
}

inline const Typed& kernels_for(at::ScalarType type) {
  const Kernels& all = mmrednet_kernels();
  return type == at::kDouble ? all.double_ : type == at::kBFloat16 ? all.bfloat16 : all.float_;
}

// bytes of a number in which sums are taken
inline int64_t sum_bytes(at::ScalarType type) {
  return type == at::kDouble ? sizeof(double) : sizeof(float);
}

View view(const at::Tensor& tensor);

// of the eight numbers of a window, all of whose sums and products with sizes of a map are numbers
// too
Geometry geometry(at::IntArrayRef window);

// The functions in Python check their arguments; whoever calls torch.ops.mmrednet goes past them. A
// wrong size would be an address outside a tensor.
void check_sizes(const char* name, const at::Tensor& tensor, at::IntArrayRef expected);

// (Ho, Wo), the outputs of a window on a map of (H, W)
std::array<int64_t, 2> output_size(const Geometry& geometry, at::IntArrayRef map);

// dense, with the dimensions in memory in the order of those of `like`
at::Tensor empty_in_layout_of(const at::Tensor& like, at::IntArrayRef size);

// the same numbers with those strides, without a copy where it has them
at::Tensor in_layout_of(const at::Tensor& like, const at::Tensor& tensor);

// the primitives: see mmrednet/ops/local.py
at::Tensor aggregate(const at::Tensor& value, const at::Tensor& weight, at::IntArrayRef window);
at::Tensor correlate(const at::Tensor& query, const at::Tensor& key, at::IntArrayRef window);
at::Tensor scatter(const at::Tensor& grad, const at::Tensor& weight, at::IntArrayRef size,
                   at::IntArrayRef window);

}  // namespace mmrednet
