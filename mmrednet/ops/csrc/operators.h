// The operators for the CPU. They check sizes, allocate results and start threads.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/string_view.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace mmrednet {

// The primitives, see mmrednet/ops/local.py.
at::Tensor aggregate(const at::Tensor& value, const at::Tensor& weight, at::IntArrayRef window);
at::Tensor correlate(const at::Tensor& query, const at::Tensor& key, at::IntArrayRef window);
at::Tensor scatter(const at::Tensor& grad, const at::Tensor& weight, at::IntArrayRef size,
                   at::IntArrayRef window);

// Involution, see mmrednet/ops/involution.py.
at::Tensor involution(const at::Tensor& value, const at::Tensor& hidden, const at::Tensor& weight,
                      const std::optional<at::Tensor>& bias, at::IntArrayRef window);
at::Tensor involution_affine(const at::Tensor& value, const at::Tensor& hidden,
                             const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                             const at::Tensor& scale, const at::Tensor& shift, bool relu,
                             at::IntArrayRef window);
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> involution_backward(
    const at::Tensor& grad_output, const at::Tensor& value, const at::Tensor& hidden,
    const at::Tensor& weight, const std::optional<at::Tensor>& bias, at::IntArrayRef numbers);

// Local attention, see mmrednet/ops/attention.py and difference_attention.py.
std::tuple<at::Tensor, at::Tensor> attention(const at::Tensor& query, const at::Tensor& key,
                                             const at::Tensor& value,
                                             const std::optional<at::Tensor>& rows,
                                             const std::optional<at::Tensor>& columns,
                                             const std::optional<at::Tensor>& bias,
                                             at::IntArrayRef window);
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
attention_backward(const at::Tensor& grad, const at::Tensor& logsumexp, const at::Tensor& query,
                   const at::Tensor& key, const at::Tensor& value,
                   const std::optional<at::Tensor>& rows, const std::optional<at::Tensor>& columns,
                   const std::optional<at::Tensor>& bias, at::IntArrayRef window);
at::Tensor difference_attention(const at::Tensor& query, const at::Tensor& key,
                                const at::Tensor& value, const std::optional<at::Tensor>& bias,
                                at::IntArrayRef window);
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> difference_attention_backward(
    const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const std::optional<at::Tensor>& bias, at::IntArrayRef window);

// Axial attention, see mmrednet/ops/axial.py and axial_moments.py.
at::Tensor axial_attention(const at::Tensor& lines, const at::Tensor& relative,
                           const at::Tensor& scale, const at::Tensor&,
                           const std::optional<at::Tensor>& position_scale, int64_t key_channels,
                           at::IntArrayRef terms, int64_t span, bool value_position, int64_t);
std::tuple<at::Tensor, at::Tensor, at::Tensor> axial_attention_backward(
    const at::Tensor& grad, const at::Tensor& lines, const at::Tensor& relative,
    const at::Tensor& scale, int64_t key_channels, at::IntArrayRef terms, int64_t span,
    bool value_position, int64_t);
std::tuple<at::Tensor, at::Tensor> axial_moments(const at::Tensor& lines,
                                                 const at::Tensor& relative, int64_t key_channels,
                                                 at::IntArrayRef terms, int64_t span, int64_t);
std::tuple<at::Tensor, at::Tensor> axial_moments_backward(
    const at::Tensor& offset, const at::Tensor& slope, const at::Tensor& lines,
    const at::Tensor& relative, int64_t key_channels, at::IntArrayRef terms, int64_t span, int64_t);

// Vector attention, see mmrednet/ops/vector_attention.py and vector_moments.py.
at::Tensor vector_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const at::Tensor& scale1, const at::Tensor& shift1,
                            const at::Tensor& weight1, const at::Tensor& scale2,
                            const at::Tensor& shift2, const at::Tensor& weight2,
                            const at::Tensor& bias2, c10::string_view relation, bool patchwise,
                            int64_t position_channels, at::IntArrayRef window);
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
           at::Tensor, at::Tensor, at::Tensor>
vector_attention_backward(const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key,
                          const at::Tensor& value, const at::Tensor& scale1,
                          const at::Tensor& shift1, const at::Tensor& weight1,
                          const at::Tensor& scale2, const at::Tensor& shift2,
                          const at::Tensor& weight2, const at::Tensor& bias2,
                          c10::string_view relation, bool patchwise, int64_t position_channels,
                          at::IntArrayRef window);
std::tuple<at::Tensor, at::Tensor> vector_moments(
    const at::Tensor& query, const at::Tensor& key, const std::optional<at::Tensor>& scale,
    const std::optional<at::Tensor>& shift, const std::optional<at::Tensor>& weight,
    c10::string_view relation, bool patchwise, int64_t position_channels, at::IntArrayRef window);
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> vector_moments_backward(
    const at::Tensor& grad_mean, const at::Tensor& grad_variance, const at::Tensor& mean,
    const at::Tensor& query, const at::Tensor& key, const std::optional<at::Tensor>& scale,
    const std::optional<at::Tensor>& shift, const std::optional<at::Tensor>& weight,
    c10::string_view relation, bool patchwise, int64_t position_channels, at::IntArrayRef window);

// Depth-wise convolution, see mmrednet/ops/depthwise.py.
at::Tensor depthwise(const at::Tensor& x, const at::Tensor& weight,
                     const std::optional<at::Tensor>& bias, at::IntArrayRef padding,
                     at::IntArrayRef dilation, bool gelu);
std::tuple<at::Tensor, at::Tensor, at::Tensor> depthwise_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
    const std::optional<at::Tensor>& bias, at::IntArrayRef padding, at::IntArrayRef dilation,
    bool gelu);

// Operators of detectors, see mmrednet/export/detection_ops.py. They take float32 alone.
at::Tensor nms(const at::Tensor& boxes, const at::Tensor& scores, double threshold, int64_t limit);
at::Tensor roi_align(const at::Tensor& features, const at::Tensor& boxes, int64_t size,
                     double scale, int64_t samples, bool aligned);

}  // namespace mmrednet
