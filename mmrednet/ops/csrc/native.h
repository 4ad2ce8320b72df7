// What the operators share: the kernels for this processor, checks, and layouts of results.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/ArrayRef.h>

#include <array>
#include <cstdint>

#include "kernel_table.h"
#include "params.h"

namespace mmrednet {

// The kernels for the widest instruction set that was built and that this processor has. The
// environment variable MMREDNET_CPU_CAPABILITY may limit it; it is read at the first call.
const KernelTable& kernel_table();

// Returns the kernels for a dtype that kernel_type() returned.
const DtypeKernels& kernels_for(at::ScalarType type);

// Returns the dtype in which kernels take two tensors. float16 is converted to float32, because
// there are no kernels for it.
at::ScalarType kernel_type(at::ScalarType first, at::ScalarType second);

// Returns the dtype of sums: float32 or wider.
at::ScalarType accumulator_type(at::ScalarType type);

// Returns the size of an element of accumulator_type(), in bytes.
int64_t accumulator_size(at::ScalarType type);

// Returns the grain size for at::parallel_for, when an item takes `work` multiply-adds.
int64_t grain_size(int64_t work);

// Returns the number of torch's threads that share a large loop.
int64_t num_threads();

Strides strides_of(const at::Tensor& tensor);

// Returns the window of the eight numbers that operators get. Checks that they are valid, and so
// small that no index or size computed from them overflows. If `may_shift`, a ninth number stands
// for shifted windows.
Window to_window(at::IntArrayRef numbers, bool may_shift = false);

// Checks the sizes of a tensor. Python functions check their arguments, but torch.ops.mmrednet may
// be called without them, and a wrong size would lead outside the memory of a tensor.
void check_sizes(const char* name, const at::Tensor& tensor, at::IntArrayRef expected);

// Returns (Ho, Wo), the size of the outputs of a window on a feature map of size (H, W).
std::array<int64_t, 2> output_size(const Window& window, at::IntArrayRef map);

// Returns a dense tensor whose dimensions have the same order in memory as those of `like`.
at::Tensor empty_in_layout_of(const at::Tensor& like, at::IntArrayRef size);

// Returns the tensor in the layout of empty_in_layout_of(), copied if it has another one.
at::Tensor in_layout_of(const at::Tensor& like, const at::Tensor& tensor);

// Scatters into a tensor, which may be a part of one. All have one dtype, for which there are
// kernels, and sizes that have been checked.
void scatter_into(const at::Tensor& result, const at::Tensor& grad, const at::Tensor& weight,
                  at::IntArrayRef window);

}  // namespace mmrednet
