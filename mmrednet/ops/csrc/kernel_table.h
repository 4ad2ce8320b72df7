// The table of kernels that each instruction set exports, and from which native.cpp chooses.

#pragma once

#include <cstdint>

#include "depthwise_params.h"
#include "params.h"

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

// The kernels for one dtype.
struct DtypeKernels {
  LocalKernel local;
  InvolutionKernel involution;
  StoreKernels store_kernels;
  KernelGradients kernel_gradients;
  HiddenGradients hidden_gradients;
  AttentionKernel attention;
  DepthwiseKernel depthwise;
  DepthwiseGradients depthwise_gradients;
};

// The kernels for one instruction set. `name` is null where the compiler cannot build them.
struct KernelTable {
  const char* name;
  DtypeKernels float32, float64, bfloat16;
};

}  // namespace mmrednet

mmrednet::KernelTable mmrednet_kernels_plain();
mmrednet::KernelTable mmrednet_kernels_avx2();
mmrednet::KernelTable mmrednet_kernels_avx512();
