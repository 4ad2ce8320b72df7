// Functions of torch that are not methods of a tensor.
//
// Their headers take seconds to compile. Only torch_functions.cpp includes them.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <cstdint>
#include <optional>

namespace mmrednet {

at::Tensor new_empty(at::IntArrayRef sizes, const at::TensorOptions& options = {});
at::Tensor new_zeros(at::IntArrayRef sizes, const at::TensorOptions& options = {});
at::Tensor new_ones(at::IntArrayRef sizes, const at::TensorOptions& options = {});
at::Tensor new_empty_like(const at::Tensor& tensor);
at::Tensor new_strided(at::IntArrayRef sizes, at::IntArrayRef strides,
                       const at::TensorOptions& options);

at::Tensor concatenated(at::TensorList tensors, int64_t dim);

// Returns a matrix with `count` more rows of zeros.
at::Tensor padded_rows(const at::Tensor& matrix, int64_t count);

// Returns torch's depth-wise convolution of stride 1, in the dtype of the tensors.
at::Tensor depthwise_by_torch(const at::Tensor& x, const at::Tensor& weight,
                              const std::optional<at::Tensor>& bias, at::IntArrayRef padding,
                              at::IntArrayRef dilation);

}  // namespace mmrednet
