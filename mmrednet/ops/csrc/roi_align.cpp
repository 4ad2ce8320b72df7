// RoIAlign for the CPU: see mmrednet/export/detection_ops.py.
//
// A sample weighs two rows and two columns of the map, independently of each other. The average
// over a cell (i, j) of a box is therefore
//
//   result[c, i, j] = sum over y of  rows[i, y] * sum over x of  columns[j, x] * map[c, y, x]
//
// and the sums over x serve all cells that take a row.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "integers.h"
#include "native.h"
#include "operators.h"
#include "torch_functions.h"

namespace mmrednet {

namespace {

// An element of the map along one axis, and its weight in a cell.
struct Tap {
  int64_t index;
  float weight;
};

// The interval of a box along one axis, in elements of the map.
struct Interval {
  float start, extent;
};

// The taps of all cells of a box along one axis. The indices of a cell ascend.
class Taps {
 public:
  // Sets the taps of an axis of `length` elements. With no samples their number adapts to the box.
  void set(const Interval& box, int64_t cells, int64_t samples, int64_t length) {
    taps_.clear();
    begins_.assign(1, 0);
    const float cell_extent = box.extent / static_cast<float>(cells);
    if (samples <= 0) samples = static_cast<int64_t>(std::ceil(cell_extent));
    for (int64_t cell = 0; cell < cells; ++cell) {
      const float cell_start = box.start + static_cast<float>(cell) * cell_extent;
      for (int64_t sample = 0; sample < samples; ++sample) {
        const float offset = (static_cast<float>(sample) + .5f) * cell_extent;
        add_sample(cell_start + offset / static_cast<float>(samples), samples, length);
      }
      begins_.push_back(taps_.size());
    }
  }

  bool empty() const { return taps_.empty(); }
  const Tap* begin(int64_t cell) const { return taps_.data() + begins_[cell]; }
  const Tap* end(int64_t cell) const { return taps_.data() + begins_[cell + 1]; }
  int64_t first_index() const { return taps_.front().index; }
  int64_t last_index() const { return taps_.back().index; }

 private:
  void add_sample(float position, int64_t samples, int64_t length) {
    // zero outside of the map, and the border's value up to one element from it
    if (position < -1 || position > static_cast<float>(length)) return;
    position = std::max(position, 0.f);
    const float share = 1.f / static_cast<float>(samples);
    const int64_t low = static_cast<int64_t>(position);
    if (low >= length - 1) return add(length - 1, share);
    const float fraction = position - static_cast<float>(low);
    add(low, share * (1 - fraction));
    add(low + 1, share * fraction);
  }

  void add(int64_t index, float weight) {
    // samples ascend: the element is one of the last two of the cell, or a new one
    const size_t size = taps_.size(), count = size - begins_.back();
    for (size_t back = 1; back <= std::min<size_t>(count, 2); ++back) {
      Tap& tap = taps_[size - back];
      if (tap.index == index) {
        tap.weight += weight;
        return;
      }
    }
    taps_.push_back({index, weight});
  }

  std::vector<Tap> taps_;
  // the first tap of each cell, and the end of the last cell
  std::vector<size_t> begins_;
};

// Up to 16 channels of the map.
struct Channels {
  const float* data;
  int64_t count, stride_c, stride_h, stride_w;
};

// Averages a map over the cells of boxes, 16 channels at a time.
class Pooling {
 public:
  explicit Pooling(int64_t cells) : cells_(cells), cell_sums_(cells * kSimdWidth) {
    for (Row& row : rows_) row.sums.resize(cells * kSimdWidth);
  }

  // Writes (channels, cells, cells) for a box.
  void compute(const Channels& map, const Taps& rows, const Taps& columns, float* result) {
    for (Row& row : rows_) row.index = -1;
    const int64_t plane = cells_ * cells_;
    for (int64_t i = 0; i < cells_; ++i) {
      std::fill(cell_sums_.begin(), cell_sums_.end(), 0.f);
      for (const Tap* tap = rows.begin(i); tap != rows.end(i) && !columns.empty(); ++tap) {
        const float* sums = row_sums(map, columns, tap->index);
        for (int64_t k = 0; k < cells_ * kSimdWidth; ++k) cell_sums_[k] += tap->weight * sums[k];
      }
      for (int64_t c = 0; c < map.count; ++c)
        for (int64_t j = 0; j < cells_; ++j)
          result[c * plane + i * cells_ + j] = cell_sums_[j * kSimdWidth + c];
    }
  }

 private:
  // The sums over the columns of each cell, (cells, 16), of a row of the map.
  struct Row {
    int64_t index;
    std::vector<float> sums;
  };

  const float* row_sums(const Channels& map, const Taps& columns, int64_t index) {
    // neighbouring cells share at most two rows, which follow each other
    Row& row = rows_[index % 2];
    if (row.index == index) return row.sums.data();
    row.index = index;
    const int64_t first = columns.first_index();
    pack(map, index, first, columns.last_index() + 1 - first);
    for (int64_t j = 0; j < cells_; ++j) {
      float sums[kSimdWidth] = {};
      for (const Tap* tap = columns.begin(j); tap != columns.end(j); ++tap) {
        const float* values = line_.data() + (tap->index - first) * kSimdWidth;
        for (int lane = 0; lane < kSimdWidth; ++lane) sums[lane] += tap->weight * values[lane];
      }
      std::copy_n(sums, kSimdWidth, row.sums.data() + j * kSimdWidth);
    }
    return row.sums.data();
  }

  // Copies a part of a row to (columns, 16).
  void pack(const Channels& map, int64_t row, int64_t first, int64_t columns) {
    line_.resize(columns * kSimdWidth);
    const float* values = map.data + row * map.stride_h + first * map.stride_w;
    for (int64_t x = 0; x < columns; ++x)
      for (int64_t c = 0; c < map.count; ++c)
        line_[x * kSimdWidth + c] = values[x * map.stride_w + c * map.stride_c];
  }

  int64_t cells_;
  std::vector<float> cell_sums_, line_;
  Row rows_[2];
};

// Returns the intervals (N, 2) of boxes along x and y.
std::vector<Interval> intervals_of(const at::Tensor& boxes, float scale, bool aligned) {
  // the floats up to it have all integers
  constexpr float kMaxExtent = 1 << 24;
  const at::Tensor dense = boxes.contiguous();
  const float* corners = dense.const_data_ptr<float>();
  const float shift = aligned ? .5f : 0.f;
  std::vector<Interval> intervals;
  for (int64_t box = 0; box < boxes.size(0); ++box, corners += 4) {
    for (int axis = 0; axis < 2; ++axis) {
      const float start = corners[axis] * scale - shift;
      float extent = corners[axis + 2] * scale - shift - start;
      if (!aligned) extent = std::max(extent, 1.f);
      // a NaN is no extent either
      TORCH_CHECK_VALUE(extent >= 0 && extent <= kMaxExtent, "boxes must have x1 <= x2, y1 <= y2 ",
                        "and finite sizes, got (", corners[0], ", ", corners[1], ", ", corners[2],
                        ", ", corners[3], ") at ", box);
      intervals.push_back({start, extent});
    }
  }
  return intervals;
}

void check_arguments(const at::Tensor& features, const at::Tensor& boxes, int64_t size) {
  TORCH_CHECK_VALUE(features.dim() == 4 && features.size(0) == 1 && features.numel() > 0,
                    "features must be (1, C, H, W) and not empty, got ", features.sizes());
  check_sizes("boxes", boxes, {boxes.dim() > 0 ? boxes.size(0) : 0, 4});
  TORCH_CHECK_TYPE(features.scalar_type() == at::kFloat && boxes.scalar_type() == at::kFloat,
                   "features and boxes must be float32, got ", features.scalar_type(), " and ",
                   boxes.scalar_type());
  TORCH_CHECK_VALUE(size > 0, "size must be positive, got ", size);
}

}  // namespace

at::Tensor roi_align(const at::Tensor& features, const at::Tensor& boxes, int64_t size,
                     double scale, int64_t samples, bool aligned) {
  check_arguments(features, boxes, size);
  const std::vector<Interval> intervals = intervals_of(boxes, static_cast<float>(scale), aligned);
  const int64_t count = boxes.size(0), channels = features.size(1);
  at::Tensor result = new_empty({count, channels, size, size}, features.options());
  float* outputs = result.mutable_data_ptr<float>();
  // about eight columns and rows of a cell
  const int64_t work = channels * size * size * 8;
  at::parallel_for(0, count, grain_size(work), [&](int64_t begin, int64_t end) {
    Pooling pooling(size);
    Taps columns, rows;
    for (int64_t box = begin; box < end; ++box) {
      columns.set(intervals[2 * box], size, samples, features.size(3));
      rows.set(intervals[2 * box + 1], size, samples, features.size(2));
      for (int64_t c = 0; c < channels; c += kSimdWidth) {
        const Channels map = {features.const_data_ptr<float>() + c * features.stride(1),
                              int_min(kSimdWidth, channels - c), features.stride(1),
                              features.stride(2), features.stride(3)};
        pooling.compute(map, rows, columns, outputs + (box * channels + c) * size * size);
      }
    }
  });
  return result;
}

}  // namespace mmrednet
