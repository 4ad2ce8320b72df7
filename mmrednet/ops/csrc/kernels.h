// The kernels for one instruction set: this file is compiled once for each, inside a namespace of
// its own. Everything here works on raw pointers and strides; what the tensors mean is documented
// in mmrednet/ops/.
//
// Each output is computed by one thread in one order, so results do not depend on the number of
// threads. Channels-last maps are read where they are, position by position, with vectors along the
// channels of a group (channels_last.h). Of other maps, and of keys, a few rows at a time are
// packed so that vectors run along the width (packed_rows.h). A scatter with a stride, or with more
// padding than its kernel reaches, adds row by row instead (local.h). Involution and attention make
// the weights of a tile or a row of outputs in memory of the thread's own, and use them at once
// (involution_forward.h, local_attention.h). Sums over all positions are taken in parts that do not
// depend on the number of threads, and added up in order (involution_backward.h).

#pragma once

#include "involution_backward.h"
#include "involution_forward.h"
#include "isa.h"
#include "local.h"
#include "local_attention.h"
#include "params.h"
#include "simd.h"

namespace mmrednet::MMREDNET_ISA {

template <typename T, typename A>
constexpr Typed typed() {
  return {run<T, A>,
          run_involution<T, A>,
          store_kernels<T, A>,
          run_kernel_gradients<T, A>,
          store_hidden_gradients<T, A>,
          run_attention<T, A>};
}

inline Kernels kernels(const char* name) {
  return {name, typed<float, float>(), typed<double, double>(), typed<BFloat16, float>()};
}

}  // namespace mmrednet::MMREDNET_ISA
