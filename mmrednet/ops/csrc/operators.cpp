// Registers what computes the operators on a CPU, and, for processes without Python, the operators.
//
// The header that registers takes seconds to compile, and no other file includes it.

#include "operators.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <initializer_list>
#include <optional>
#include <string>

#include "native.h"

namespace {

// The operators of inference, as Python infers their schemas from the functions in mmrednet/ops and
// in mmrednet/export/detection_ops.py. A test compares both.
const std::initializer_list<const char*> kSchemas = {
    "aggregate(Tensor value, Tensor weight, SymInt[] window) -> Tensor",
    "correlate(Tensor query, Tensor key, SymInt[] window) -> Tensor",
    "involution(Tensor value, Tensor hidden, Tensor weight, Tensor? bias, SymInt[] window)"
    " -> Tensor",
    "involution_affine(Tensor value, Tensor hidden, Tensor weight, Tensor? bias, Tensor scale,"
    " Tensor shift, bool relu, SymInt[] window) -> Tensor",
    "attention(Tensor query, Tensor key, Tensor value, Tensor? rows, Tensor? columns, Tensor? bias,"
    " SymInt[] window) -> (Tensor, Tensor)",
    "difference_attention(Tensor query, Tensor key, Tensor value, Tensor? bias, SymInt[] window)"
    " -> Tensor",
    "axial_attention(Tensor lines, Tensor relative, Tensor scale, Tensor shift,"
    " Tensor? position_scale, SymInt key_channels, SymInt[] terms, SymInt span,"
    " bool value_position, SymInt budget) -> Tensor",
    "vector_attention(Tensor query, Tensor key, Tensor value, Tensor scale1, Tensor shift1,"
    " Tensor weight1, Tensor scale2, Tensor shift2, Tensor weight2, Tensor bias2, str relation,"
    " bool patchwise, SymInt position_channels, SymInt[] window) -> Tensor",
    "depthwise(Tensor x, Tensor weight, Tensor? bias, SymInt[] padding, SymInt[] dilation,"
    " bool gelu) -> Tensor",
};
const std::initializer_list<const char*> kDetectionSchemas = {
    "nms(Tensor boxes, Tensor scores, float threshold, SymInt limit) -> Tensor",
    "roi_align(Tensor features, Tensor boxes, SymInt size, float scale, SymInt samples,"
    " bool aligned) -> Tensor",
};

bool is_defined(const std::string& schema) {
  const std::string name = "mmrednet::" + schema.substr(0, schema.find('('));
  return c10::Dispatcher::singleton().findSchema({name, ""}).has_value();
}

// The operators that Python has not defined: all of them, unless Python loads this library late.
class Schemas {
 public:
  explicit Schemas(std::initializer_list<const char*> schemas)
      : library_(torch::Library::FRAGMENT, "mmrednet", std::nullopt, __FILE__, __LINE__) {
    for (const char* schema : schemas)
      if (!is_defined(schema)) library_.def(schema);
  }

  // Leaves the operators to Python, which defines them together with their gradients.
  void release() { library_.reset(); }

 private:
  torch::Library library_;
};

Schemas schemas(kSchemas);
Schemas detection_schemas(kDetectionSchemas);

}  // namespace

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
  m.impl("nms", &mmrednet::nms);
  m.impl("roi_align", &mmrednet::roi_align);
}

TORCH_LIBRARY(mmrednet_native, m) {
  m.def("capability() -> str", [] { return std::string(mmrednet::kernel_table().name); });
  m.def("threads() -> int", &mmrednet::num_threads);
  m.def("release_schemas() -> ()", [] { schemas.release(); });
  m.def("release_detection_schemas() -> ()", [] { detection_schemas.release(); });
}
