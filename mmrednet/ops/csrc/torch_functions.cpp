// Functions of torch that are not methods of a tensor.

#include "torch_functions.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <optional>

namespace mmrednet {

at::Tensor new_empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return at::empty(sizes, options);
}

at::Tensor new_zeros(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return at::zeros(sizes, options);
}

at::Tensor new_ones(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return at::ones(sizes, options);
}

at::Tensor new_empty_like(const at::Tensor& tensor) { return at::empty_like(tensor); }

at::Tensor new_strided(at::IntArrayRef sizes, at::IntArrayRef strides,
                       const at::TensorOptions& options) {
  return at::empty_strided(sizes, strides, options);
}

at::Tensor concatenated(at::TensorList tensors, int64_t dim) { return at::cat(tensors, dim); }

at::Tensor padded_rows(const at::Tensor& matrix, int64_t count) {
  return at::constant_pad_nd(matrix, {0, 0, 0, count});
}

at::Tensor depthwise_by_torch(const at::Tensor& x, const at::Tensor& weight,
                              const std::optional<at::Tensor>& bias, at::IntArrayRef padding,
                              at::IntArrayRef dilation) {
  // the dtype has been chosen
  c10::impl::ExcludeDispatchKeyGuard without_autocast(c10::autocast_dispatch_keyset);
  return at::conv2d(x, weight, bias, {1, 1}, padding, dilation, weight.size(0));
}

}  // namespace mmrednet
