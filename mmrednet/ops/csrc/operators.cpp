// Registers the operators. They are defined in Python; here is what computes them on a CPU.
//
// The header that registers takes seconds to compile, and no other file includes it.

#include "operators.h"

#include <torch/library.h>

#include <string>

#include "native.h"

TORCH_LIBRARY_IMPL(mmrednet, CPU, m) {
  m.impl("aggregate", &mmrednet::aggregate);
  m.impl("correlate", &mmrednet::correlate);
  m.impl("scatter", &mmrednet::scatter);
  m.impl("involution", &mmrednet::involution);
  m.impl("involution_affine", &mmrednet::involution_affine);
  m.impl("involution_backward", &mmrednet::involution_backward);
  m.impl("attention", &mmrednet::attention);
  m.impl("attention_backward", &mmrednet::attention_backward);
  m.impl("difference_attention", &mmrednet::difference_attention);
  m.impl("difference_attention_backward", &mmrednet::difference_attention_backward);
  m.impl("axial_attention", &mmrednet::axial_attention);
  m.impl("axial_attention_backward", &mmrednet::axial_attention_backward);
  m.impl("axial_moments", &mmrednet::axial_moments);
  m.impl("axial_moments_backward", &mmrednet::axial_moments_backward);
  m.impl("vector_attention", &mmrednet::vector_attention);
  m.impl("vector_attention_backward", &mmrednet::vector_attention_backward);
  m.impl("vector_moments", &mmrednet::vector_moments);
  m.impl("vector_moments_backward", &mmrednet::vector_moments_backward);
  m.impl("depthwise", &mmrednet::depthwise);
  m.impl("depthwise_backward", &mmrednet::depthwise_backward);
}

TORCH_LIBRARY(mmrednet_native, m) {
  m.def("capability() -> str", [] { return std::string(mmrednet::kernel_table().name); });
  m.def("threads() -> int", &mmrednet::num_threads);
}
