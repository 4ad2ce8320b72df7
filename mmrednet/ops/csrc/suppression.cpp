// Suppression of boxes for the CPU: see mmrednet/export/detection_ops.py.

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "native.h"
#include "operators.h"
#include "torch_functions.h"

namespace mmrednet {

namespace {

struct Box {
  float left, top, right, bottom;

  float area() const { return (right - left) * (bottom - top); }
};

// Whether two boxes overlap by more than a threshold, as intersection over union. The arithmetic is
// that of mmcv, so that overlaps equal to the threshold are decided alike.
bool overlap(const Box& first, const Box& second, float threshold) {
  const float left = std::max(first.left, second.left);
  const float top = std::max(first.top, second.top);
  const float right = std::min(first.right, second.right);
  const float bottom = std::min(first.bottom, second.bottom);
  const float intersection = std::max(0.f, right - left) * std::max(0.f, bottom - top);
  // most pairs are apart, and a division takes longer than the rest
  if (intersection == 0) return false;
  return intersection / (first.area() + second.area() - intersection) > threshold;
}

}  // namespace

at::Tensor nms(const at::Tensor& boxes, const at::Tensor& scores, double threshold, int64_t limit) {
  const int64_t count = boxes.dim() > 0 ? boxes.size(0) : 0;
  check_sizes("boxes", boxes, {count, 4});
  check_sizes("scores", scores, {count});
  TORCH_CHECK_TYPE(boxes.scalar_type() == at::kFloat && scores.scalar_type() == at::kFloat,
                   "boxes and scores must be float32, got ", boxes.scalar_type(), " and ",
                   scores.scalar_type());
  TORCH_CHECK_VALUE(threshold >= 0, "threshold must not be negative, got ", threshold);
  // not the stable sort, so that equal scores have the order that mmcv gives them
  const at::Tensor order = std::get<1>(scores.sort(0, /*descending=*/true));
  const at::Tensor corners = boxes.index_select(0, order).contiguous();
  const float* values = corners.const_data_ptr<float>();
  const int64_t* indices = order.const_data_ptr<int64_t>();
  std::vector<Box> kept;
  std::vector<int64_t> kept_indices;
  for (int64_t i = 0; i < count && static_cast<int64_t>(kept.size()) < limit; ++i, values += 4) {
    const Box box = {values[0], values[1], values[2], values[3]};
    const auto suppresses = [&](const Box& better) {
      return overlap(better, box, static_cast<float>(threshold));
    };
    if (std::any_of(kept.begin(), kept.end(), suppresses)) continue;
    kept.push_back(box);
    kept_indices.push_back(indices[i]);
  }
  at::Tensor result = new_empty({static_cast<int64_t>(kept.size())}, order.options());
  std::copy(kept_indices.begin(), kept_indices.end(), result.mutable_data_ptr<int64_t>());
  return result;
}

}  // namespace mmrednet
