// The table of kernels that each instruction set exports, and from which native.cpp chooses.

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

// The kernels for one instruction set. `name` is null where the compiler cannot build them.
struct KernelTable {
  const char* name;
  DtypeKernels float32, float64, bfloat16;
};

}  // namespace mmrednet

mmrednet::KernelTable mmrednet_kernels_plain();
mmrednet::KernelTable mmrednet_kernels_avx2();
mmrednet::KernelTable mmrednet_kernels_avx512();
mmrednet::KernelTable mmrednet_kernels_avx512bf16();
