// The primitives for the CPU as operators of torch: tensors to pointers and strides, rows to threads.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty_strided.h>
#include <c10/core/ScalarType.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>

#include "problem.h"

mmrednet::Kernels mmrednet_kernels_plain();
mmrednet::Kernels mmrednet_kernels_avx2();
mmrednet::Kernels mmrednet_kernels_avx512();

namespace {

// multiply-adds that are worth a thread
constexpr int64_t kGrain = 32768;

using mmrednet::Kernels;
using mmrednet::Kind;
using mmrednet::Problem;
using mmrednet::View;

bool has(const char* isa) {
#if defined(__GNUC__) && defined(__x86_64__)
  if (!std::strcmp(isa, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
  if (!std::strcmp(isa, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return !std::strcmp(isa, "plain");
}

// the widest that was built and that this processor has, no wider than MMREDNET_CPU_CAPABILITY if that is set
const Kernels& kernels() {
  static const Kernels chosen = [] {
    const char* limit = std::getenv("MMREDNET_CPU_CAPABILITY");
    bool allowed = limit == nullptr;
    for (const Kernels& candidate : {mmrednet_kernels_avx512(), mmrednet_kernels_avx2(), mmrednet_kernels_plain()}) {
      if (candidate.name == nullptr) continue;
      allowed = allowed || !std::strcmp(limit, candidate.name);
      if (allowed && has(candidate.name)) return candidate;
    }
    return mmrednet_kernels_plain();
  }();
  return chosen;
}

View view(const at::Tensor& tensor) {
  return {tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3), tensor.stride(4)};
}

// dense, with the dimensions in memory in the order of those of `like`
at::Tensor empty_in_layout_of(const at::Tensor& like, at::IntArrayRef size) {
  std::vector<int64_t> order(like.dim());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return like.stride(a) > like.stride(b); });
  std::vector<int64_t> strides(like.dim());
  int64_t step = 1;
  for (auto dim = order.rbegin(); dim != order.rend(); ++dim) {
    strides[*dim] = step;
    step *= std::max<int64_t>(size[*dim], 1);
  }
  // not a view of another tensor: what follows may change the result of an op in place
  return at::empty_strided(size, strides, like.options());
}

at::Tensor solve(Kind kind, const at::Tensor& first_given, const at::Tensor& second_given, at::IntArrayRef size,
                 at::IntArrayRef map, at::IntArrayRef outputs, at::IntArrayRef window) {
  TORCH_CHECK(window.size() == 8, "window must have 8 numbers, got ", window.size());
  TORCH_CHECK(first_given.dim() == 5 && second_given.dim() == 5, "inputs must have 5 dimensions");
  // sums are taken in float32 or wider: half precision that the kernels do not know is widened first
  auto type = c10::promoteTypes(first_given.scalar_type(), second_given.scalar_type());
  if (type != at::kDouble && type != at::kBFloat16) type = at::kFloat;
  const at::Tensor first = first_given.to(type), second = second_given.to(type);
  at::Tensor result = empty_in_layout_of(first, size);
  if (result.numel() == 0) return result.to(first_given.scalar_type());
  Problem p;
  p.kind = kind;
  p.geometry = {window[0], window[1], window[2], window[3], window[4], window[5], window[6], window[7]};
  p.first = view(first);
  p.second = view(second);
  p.result = view(result);
  p.groups = first.size(1);
  p.channels = first.size(2);
  p.height = map[0];
  p.width = map[1];
  p.out_height = outputs[0];
  p.out_width = outputs[1];
  p.lines = size[3];
  const auto run = type == at::kDouble ? kernels().run_double
                   : type == at::kBFloat16 ? kernels().run_bfloat16 : kernels().run_float;
  const int64_t line_work = std::max<int64_t>(1, p.channels * size[4] * window[0] * window[1]);
  const int64_t grain = std::max<int64_t>(1, kGrain / line_work);
  p.scratch = mmrednet::scratch_bytes(p, type == at::kDouble ? sizeof(double) : sizeof(float));
  at::parallel_for(0, size[0] * p.groups * p.lines, grain, [&](int64_t begin, int64_t end) {
    std::unique_ptr<char[]> scratch(new char[p.scratch]);
    run(p, first.const_data_ptr(), second.const_data_ptr(), result.mutable_data_ptr(), scratch.get(), begin, end);
  });
  return result.to(first_given.scalar_type());
}

at::Tensor aggregate(const at::Tensor& value, const at::Tensor& weight, at::IntArrayRef window) {
  return solve(mmrednet::kAggregate, value, weight,
               {value.size(0), value.size(1), value.size(2), weight.size(3), weight.size(4)},
               value.sizes().slice(3), weight.sizes().slice(3), window);
}

at::Tensor correlate(const at::Tensor& query, const at::Tensor& key, at::IntArrayRef window) {
  return solve(mmrednet::kCorrelate, query, key,
               {query.size(0), query.size(1), window[0] * window[1], query.size(3), query.size(4)},
               key.sizes().slice(3), query.sizes().slice(3), window);
}

at::Tensor scatter(const at::Tensor& grad, const at::Tensor& weight, at::IntArrayRef size, at::IntArrayRef window) {
  return solve(mmrednet::kScatter, grad, weight, {grad.size(0), grad.size(1), grad.size(2), size[0], size[1]}, size,
               grad.sizes().slice(3), window);
}

std::string capability() { return kernels().name; }

}  // namespace

TORCH_LIBRARY(mmrednet_native, m) {
  m.def("aggregate(Tensor value, Tensor weight, int[] window) -> Tensor");
  m.def("correlate(Tensor query, Tensor key, int[] window) -> Tensor");
  m.def("scatter(Tensor grad, Tensor weight, int[] size, int[] window) -> Tensor");
  m.def("capability() -> str", &capability);
}

TORCH_LIBRARY_IMPL(mmrednet_native, CPU, m) {
  m.impl("aggregate", &aggregate);
  m.impl("correlate", &correlate);
  m.impl("scatter", &scatter);
}
