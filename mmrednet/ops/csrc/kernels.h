// All kernels, gathered in a table. Each kernels_*.cpp includes this file once, with MMREDNET_ISA
// set to its instruction set, and makes the table of one dtype.
//
// Kernels work on raw pointers and strides. What the tensors mean is documented in mmrednet/ops/.
//
// - local.h: the three primitives. Channels-last feature maps are read in place, with vectors along
//   the channels of a group (channels_last.h). Of other maps, and of keys, a few rows are packed at
//   a time, so that vectors run along the width (packed_rows.h, correlate.h).
// - involution_forward.h, local_attention.h: weights of a tile or a row of outputs are computed
//   into the workspace of the thread and used at once.
// - axial_forward.h, axial_backward.h, axial_moments.h: attention along lines, 16 lines in a
// vector.
// - vector_*.h: vector attention by strips of packed rows, with vectors along the outputs.
// - depthwise.h, depthwise_backward.h: rows of 16 channels are packed, so that vectors run along
//   channels in every layout.
// - involution_backward.h, vector_backward.h: sums over all positions are split into parts, which
//   are added in order.
//
// One thread computes each output, in a fixed order, and the parts of a sum do not depend on the
// number of threads. So the results do not depend on it either.

#pragma once

#include "axial_backward.h"
#include "axial_forward.h"
#include "axial_moments.h"
#include "depthwise.h"
#include "depthwise_backward.h"
#include "involution_backward.h"
#include "involution_forward.h"
#include "isa.h"
#include "kernel_table.h"
#include "local.h"
#include "local_attention.h"
#include "local_attention_backward.h"
#include "simd.h"
#include "vector_backward.h"

namespace mmrednet::MMREDNET_ISA {

// The kernels for tensors of type T, with sums of type A.
template <typename T, typename A>
constexpr DtypeKernels dtype_kernels() {
  return {run_local<T, A>,
          run_involution<T, A>,
          store_kernels<T, A>,
          run_kernel_gradients<T, A>,
          store_hidden_gradients<T, A>,
          run_attention<T, A>,
          run_attention_gradients<T, A>,
          run_axial<T, A>,
          run_axial_backward<T, A>,
          run_axial_moments<T, A>,
          run_axial_moments_backward<T, A>,
          run_vector_attention<T, A>,
          fold_vector_strips<A>,
          run_depthwise<T, A>,
          run_depthwise_gradients<T, A>};
}

}  // namespace mmrednet::MMREDNET_ISA
