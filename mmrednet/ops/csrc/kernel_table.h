// The kernels for each dtype that the instruction sets export, and from which native.cpp chooses.

#pragma once

#include <cstdint>

#include "axial_params.h"
#include "depthwise_params.h"
#include "params.h"
#include "vector_params.h"

namespace mmrednet {

// The last arguments of every kernel are the workspace of the thread and the range of work items.
using LocalKernel = void (*)(const LocalParams&, const LocalPointers&, void*, int64_t, int64_t);
using InvolutionKernel = void (*)(const InvolutionParams&, const InvolutionPointers&, void*,
                                  int64_t, int64_t);
using StoreKernels = void (*)(const InvolutionParams&, const InvolutionPointers&, void* features,
                              void*, int64_t, int64_t);
using KernelGradients = void (*)(const InvolutionBackwardParams&, const InvolutionBackwardPointers&,
                                 void*, int64_t, int64_t);
// needs no workspace
using HiddenGradients = void (*)(const InvolutionBackwardParams&, const InvolutionBackwardPointers&,
                                 int64_t, int64_t);
using AttentionKernel = void (*)(const AttentionParams&, const AttentionPointers&, void*, int64_t,
                                 int64_t);
using AxialKernel = void (*)(const AxialParams&, const AxialPointers&, void*, int64_t, int64_t);

using VectorKernel = void (*)(const VectorParams&, const VectorPointers&, void*, int64_t, int64_t);
// needs no workspace; its arguments are the gradients of packed rows and their number of channels
using VectorFold = void (*)(const VectorParams&, const VectorPointers&, void*, int64_t, int64_t,
                            int64_t);

// The kernels for one dtype.
struct DtypeKernels {
  LocalKernel local;
  InvolutionKernel involution;
  StoreKernels store_kernels;
  KernelGradients kernel_gradients;
  HiddenGradients hidden_gradients;
  AttentionKernel attention, attention_gradients;
  AxialKernel axial, axial_backward, axial_moments, axial_moments_backward;
  VectorKernel vector_attention;
  VectorFold vector_fold;
  DepthwiseKernel depthwise;
  DepthwiseGradients depthwise_gradients;
};

// The kernels for one instruction set.
struct KernelTable {
  const char* name;
  const DtypeKernels *float32, *float64, *bfloat16;
};

// Tables of pointers, which are filled before any code runs: a function that returned them would be
// compiled for its instruction set, and this processor may lack it. Where the compiler cannot build
// kernels, or was not asked to, the pointers are null.
namespace avx512bf16 {
// kernels of other dtypes gain nothing from these instructions
extern const DtypeKernels bfloat16_kernels;
}  // namespace avx512bf16
namespace avx512 {
extern const DtypeKernels float32_kernels, float64_kernels, bfloat16_kernels;
}
namespace avx2 {
extern const DtypeKernels float32_kernels, float64_kernels, bfloat16_kernels;
}
namespace plain {
extern const DtypeKernels float32_kernels, float64_kernels, bfloat16_kernels;
}

}  // namespace mmrednet
