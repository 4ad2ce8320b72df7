// Chooses the kernels for this processor, and defines what native.h declares.

#include "native.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/ArrayRef.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <vector>

#include "integers.h"
#include "kernel_table.h"
#include "params.h"
#include "torch_functions.h"

namespace mmrednet {

namespace {

bool equal(const char* first, const char* second) { return std::strcmp(first, second) == 0; }

// Whether the processor has an instruction set, that is, all that its kernels are compiled for.
bool is_supported(const char* isa) {
#if defined(__GNUC__) && defined(__x86_64__)
  // as in instruction_set.h
#if __GNUC__ >= 11
  if (equal(isa, "avx512bf16"))
    return is_supported("avx512") && __builtin_cpu_supports("avx512bf16");
#endif
  if (equal(isa, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("fma");
  if (equal(isa, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return equal(isa, "plain");
}

// From the widest instruction set to the narrowest.
const KernelTable kTables[] = {
    {"avx512bf16", &avx512::float32_kernels, &avx512::float64_kernels,
     &avx512bf16::bfloat16_kernels},
    {"avx512", &avx512::float32_kernels, &avx512::float64_kernels, &avx512::bfloat16_kernels},
    {"avx2", &avx2::float32_kernels, &avx2::float64_kernels, &avx2::bfloat16_kernels},
    {"plain", &plain::float32_kernels, &plain::float64_kernels, &plain::bfloat16_kernels},
};

bool is_built(const KernelTable& table) {
  return table.float32->local && table.float64->local && table.bfloat16->local;
}

const KernelTable& choose_kernels() {
  const char* limit = std::getenv("MMREDNET_CPU_CAPABILITY");
  bool allowed = limit == nullptr;
  const KernelTable* chosen = nullptr;
  for (const KernelTable& table : kTables) {
    // those before the limit are skipped
    allowed = allowed || equal(limit, table.name);
    if (allowed && !chosen && is_built(table) && is_supported(table.name)) chosen = &table;
  }
  TORCH_CHECK_VALUE(allowed,
                    "MMREDNET_CPU_CAPABILITY must be avx512bf16, avx512, avx2 or plain, got '",
                    limit, "'");
  // kernels that were compiled on first use are for one instruction set
  TORCH_CHECK(chosen, "the CPU kernels were compiled for another processor, or for another value ",
              "of MMREDNET_CPU_CAPABILITY");
  return *chosen;
}

}  // namespace

const KernelTable& kernel_table() {
  static const KernelTable& table = choose_kernels();
  return table;
}

const DtypeKernels& kernels_for(at::ScalarType type) {
  const KernelTable& table = kernel_table();
  if (type == at::kDouble) return *table.float64;
  return type == at::kBFloat16 ? *table.bfloat16 : *table.float32;
}

at::ScalarType kernel_type(at::ScalarType first, at::ScalarType second) {
  const auto type = c10::promoteTypes(first, second);
  return type == at::kDouble || type == at::kBFloat16 ? type : at::kFloat;
}

at::ScalarType accumulator_type(at::ScalarType type) {
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

int64_t accumulator_size(at::ScalarType type) {
  return type == at::kDouble ? sizeof(double) : sizeof(float);
}

int64_t grain_size(int64_t work) {
  // starting a thread takes some microseconds, in which a core does about as many multiply-adds
  constexpr int64_t kMinThreadWork = 32768;
  return int_max(1, kMinThreadWork / int_max(1, work));
}

Strides strides_of(const at::Tensor& tensor) {
  return {tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3), tensor.stride(4)};
}

Window to_window(at::IntArrayRef numbers, bool may_shift) {
  static const char* const kNames[] = {"kernel height",    "kernel width",     "stride (rows)",
                                       "stride (columns)", "dilation (rows)",  "dilation (columns)",
                                       "padding (rows)",   "padding (columns)"};
  // The largest kernel axis, and the largest distance of a tap or an output from the first one. The
  // sum of two such distances and of a size of a map does not overflow.
  constexpr int64_t kMaxKernel = int64_t{1} << 20, kMaxDistance = int64_t{1} << 61;
  const bool shifted = may_shift && numbers.size() == 9;
  TORCH_CHECK_VALUE(shifted || numbers.size() == 8, "window must have 8 numbers, got ",
                    numbers.size());
  for (int i = 0; i < 8; ++i) {
    const bool is_kernel = i < 2, is_dilation = i == 4 || i == 5, is_padding = i >= 6;
    // the last tap is kernel - 1 dilations away
    const int64_t steps = is_dilation ? int_max(1, numbers[i % 2] - 1) : 1;
    const int64_t least = is_padding ? 0 : 1;
    const int64_t most = is_kernel ? kMaxKernel : kMaxDistance / steps;
    TORCH_CHECK_VALUE(numbers[i] >= least && numbers[i] <= most, kNames[i],
                      " of the window must lie between ", least, " and ", most, ", got ",
                      numbers[i]);
  }
  const Window window = {numbers[0], numbers[1], numbers[2], numbers[3], numbers[4],
                         numbers[5], numbers[6], numbers[7], shifted};
  TORCH_CHECK_VALUE(
      !shifted || (window.stride_h == 1 && window.stride_w == 1 && window.dilation_h == 1 &&
                   window.dilation_w == 1 && window.kernel_h == 2 * window.padding_h + 1 &&
                   window.kernel_w == 2 * window.padding_w + 1),
      "shifted windows must have stride and dilation 1 and be centred, got ", numbers);
  return window;
}

void check_sizes(const char* name, const at::Tensor& tensor, at::IntArrayRef expected) {
  TORCH_CHECK_VALUE(tensor.sizes() == expected, name, " must have sizes ", expected, ", got ",
                    tensor.sizes());
}

std::array<int64_t, 2> output_size(const Window& window, at::IntArrayRef map) {
  TORCH_CHECK_VALUE(!window.shifted || (map[0] >= window.kernel_h && map[1] >= window.kernel_w),
                    "the map must not be smaller than a shifted window, got ", map);
  // how far the window can move from its first position
  const int64_t room_h =
      map[0] + 2 * window.padding_h - window.dilation_h * (window.kernel_h - 1) - 1;
  const int64_t room_w =
      map[1] + 2 * window.padding_w - window.dilation_w * (window.kernel_w - 1) - 1;
  TORCH_CHECK_VALUE(room_h >= 0 && room_w >= 0,
                    "the window must fit into the padded map, which is ", map);
  return {room_h / window.stride_h + 1, room_w / window.stride_w + 1};
}

int64_t num_threads() {
  std::vector<char> ran(at::get_num_threads());
  at::parallel_for(0, static_cast<int64_t>(ran.size()), 1,
                   [&](int64_t, int64_t) { ran[at::get_thread_num()] = 1; });
  return std::count(ran.begin(), ran.end(), 1);
}

at::Tensor empty_in_layout_of(const at::Tensor& like, at::IntArrayRef size) {
  // dimensions from the largest stride to the smallest
  std::vector<int64_t> order(like.dim());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return like.stride(a) > like.stride(b); });
  std::vector<int64_t> strides(like.dim());
  int64_t stride = 1;
  for (auto dim = order.rbegin(); dim != order.rend(); ++dim) {
    strides[*dim] = stride;
    stride *= int_max(size[*dim], 1);
  }
  // Not a permuted view of a contiguous tensor: autograd would treat in-place operations on the
  // result as operations on a view.
  return new_strided(size, strides, like.options());
}

at::Tensor in_layout_of(const at::Tensor& like, const at::Tensor& tensor) {
  at::Tensor result = empty_in_layout_of(like, tensor.sizes());
  bool same = true;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) {
    // the stride of a dimension of one element does not matter
    same = same && (tensor.size(dim) < 2 || tensor.stride(dim) == result.stride(dim));
  }
  return same ? tensor : result.copy_(tensor);
}

}  // namespace mmrednet
