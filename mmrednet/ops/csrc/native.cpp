// Which kernels this processor gets. The operators themselves are defined in Python, and
// implemented for the CPU in the files beside this one.

#include "native.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty_strided.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

mmrednet::Kernels mmrednet_kernels_plain();
mmrednet::Kernels mmrednet_kernels_avx2();
mmrednet::Kernels mmrednet_kernels_avx512();

namespace {

bool has(const char* isa) {
#if defined(__GNUC__) && defined(__x86_64__)
  if (!std::strcmp(isa, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("fma");
  if (!std::strcmp(isa, "avx2"))
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return !std::strcmp(isa, "plain");
}

bool known(const char* isa) {
  return !std::strcmp(isa, "avx512") || !std::strcmp(isa, "avx2") || !std::strcmp(isa, "plain");
}

// how many of torch's threads share a loop of these kernels
int64_t threads() {
  std::vector<char> seen(at::get_num_threads());
  at::parallel_for(0, static_cast<int64_t>(seen.size()), 1,
                   [&](int64_t, int64_t) { seen[at::get_thread_num()] = 1; });
  return std::count(seen.begin(), seen.end(), 1);
}

}  // namespace

const mmrednet::Kernels& mmrednet_kernels() {
  static const mmrednet::Kernels chosen = [] {
    const char* limit = std::getenv("MMREDNET_CPU_CAPABILITY");
    TORCH_CHECK_VALUE(limit == nullptr || known(limit),
                      "MMREDNET_CPU_CAPABILITY must be avx512, avx2 or plain, got '", limit, "'");
    bool allowed = limit == nullptr;
    const auto candidates = {mmrednet_kernels_avx512(), mmrednet_kernels_avx2(),
                             mmrednet_kernels_plain()};
    for (const mmrednet::Kernels& candidate : candidates) {
      if (candidate.name == nullptr) continue;
      allowed = allowed || !std::strcmp(limit, candidate.name);
      if (allowed && has(candidate.name)) return candidate;
    }
    return mmrednet_kernels_plain();
  }();
  return chosen;
}

namespace mmrednet {

View view(const at::Tensor& tensor) {
  return {tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3), tensor.stride(4)};
}

namespace {
const char* const kNumbers[] = {"kernel height",    "kernel width",     "stride (rows)",
                                "stride (columns)", "dilation (rows)",  "dilation (columns)",
                                "padding (rows)",   "padding (columns)"};
// of an axis; and how far a tap or an output may lie from the first one
constexpr int64_t kMostTaps = int64_t{1} << 20, kFarthest = int64_t{1} << 61;
}  // namespace

Geometry geometry(at::IntArrayRef window) {
  TORCH_CHECK_VALUE(window.size() == 8, "window must have 8 numbers, got ", window.size());
  for (int i = 0; i < 8; ++i) {
    const bool dilation = i == 4 || i == 5;
    const int64_t least = i < 6 ? 1 : 0,
                  steps = dilation ? std::max<int64_t>(1, window[i % 2] - 1) : 1;
    const int64_t most = i < 2 ? kMostTaps : kFarthest / steps;
    TORCH_CHECK_VALUE(window[i] >= least && window[i] <= most, kNumbers[i],
                      " of the window must lie between ", least, " and ", most, ", got ",
                      window[i]);
  }
  return {window[0], window[1], window[2], window[3], window[4], window[5], window[6], window[7]};
}

void check_sizes(const char* name, const at::Tensor& tensor, at::IntArrayRef expected) {
  TORCH_CHECK_VALUE(tensor.sizes() == expected, name, " must have sizes ", expected, ", got ",
                    tensor.sizes());
}

std::array<int64_t, 2> output_size(const Geometry& g, at::IntArrayRef map) {
  const int64_t room_h = map[0] + 2 * g.padding_h - g.dilation_h * (g.kernel_h - 1) - 1;
  const int64_t room_w = map[1] + 2 * g.padding_w - g.dilation_w * (g.kernel_w - 1) - 1;
  TORCH_CHECK_VALUE(room_h >= 0 && room_w >= 0,
                    "the window must fit into the padded map, which is ", map);
  return {room_h / g.stride_h + 1, room_w / g.stride_w + 1};
}

at::Tensor empty_in_layout_of(const at::Tensor& like, at::IntArrayRef size) {
  std::vector<int64_t> order(like.dim());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return like.stride(a) > like.stride(b); });
  std::vector<int64_t> strides(like.dim());
  int64_t step = 1;
  for (auto dim = order.rbegin(); dim != order.rend(); ++dim) {
    strides[*dim] = step;
    step *= std::max<int64_t>(size[*dim], 1);
  }
  // not a view of another tensor: what follows may change the result of an op in place
  return at::empty_strided(size, strides, like.options());
}

at::Tensor in_layout_of(const at::Tensor& like, const at::Tensor& tensor) {
  at::Tensor result = empty_in_layout_of(like, tensor.sizes());
  bool same = true;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
    same = same && (tensor.size(dim) < 2 || tensor.stride(dim) == result.stride(dim));
  }
  return same ? tensor : result.copy_(tensor);
}

}  // namespace mmrednet

TORCH_LIBRARY(mmrednet_native, m) {
  m.def("capability() -> str", [] { return std::string(mmrednet_kernels().name); });
  m.def("threads() -> int", &threads);
}
