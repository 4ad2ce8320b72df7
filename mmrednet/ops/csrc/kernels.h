// The kernels for one instruction set: this file is compiled once for each, inside a namespace of its own. Everything here
// works on raw pointers and strides; what the tensors mean is documented in mmrednet/ops/.
//
// Each output is computed by one thread in one order, so results do not depend on the number of threads. Channels-last maps
// are read where they are, position by position, with vectors along the channels of a group (channels_last.h). Of other maps, and
// of keys, a few rows at a time are packed so that vectors run along the width (packed_rows.h). A scatter with a stride, or with
// more padding than its kernel reaches, adds row by row instead (local.h). Involution and attention make the weights of a
// tile or a row of outputs in memory of the thread's own, and use them at once (involution_forward.h, local_attention.h). Sums over all
// positions are taken in parts that do not depend on the number of threads, and added up in order (involution_backward.h).

#ifndef MMREDNET_NAMESPACE
#error "MMREDNET_NAMESPACE names the instruction set"
#endif

namespace MMREDNET_NAMESPACE {

using mmrednet::Attention;
using mmrednet::AttentionData;
using mmrednet::Generated;
using mmrednet::GeneratedData;
using mmrednet::Geometry;
using mmrednet::Involution;
using mmrednet::InvolutionData;
using mmrednet::Problem;
using mmrednet::View;
using mmrednet::load;
using mmrednet::store;

#include "simd.h"

#include "window.h"

#include "transpose.h"

#include "packed_rows.h"

#include "correlate.h"

#include "small_gemm.h"

#include "channels_last.h"

#include "local.h"

#include "involution_forward.h"

#include "involution_backward.h"

#include "local_attention.h"

template <typename T, typename A>
constexpr mmrednet::Typed typed() {
  return {run<T, A>, run_involution<T, A>, store_kernels<T, A>, run_kernel_gradients<T, A>, store_hidden_gradients<T, A>,
          run_attention<T, A>};
}

inline mmrednet::Kernels kernels(const char* name) {
  return {name, typed<float, float>(), typed<double, double>(), typed<mmrednet::BFloat16, float>()};
}

}  // namespace MMREDNET_NAMESPACE
