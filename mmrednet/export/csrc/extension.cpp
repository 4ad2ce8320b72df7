// The operators of mmrednet as an extension of OpenVINO, for float32 on the CPU.
//
// Each is one node that runs the kernels of ops/csrc. ONNX files have them in the domain mmrednet,
// with attributes of the same names. The library needs OpenVINO and its threads, but no torch.

#include <openvino/core/extension.hpp>
#include <openvino/core/op_extension.hpp>
#include <openvino/frontend/onnx/extension/op.hpp>

#include "axial_attention.h"
#include "involution.h"
#include "local_attention.h"
#include "vector_attention.h"

namespace {

template <class Node>
void add(std::vector<ov::Extension::Ptr>& extensions, const char* name) {
  extensions.push_back(std::make_shared<ov::OpExtension<Node>>());
  extensions.push_back(std::make_shared<ov::frontend::onnx::OpExtension<Node>>(name, "mmrednet"));
}

std::vector<ov::Extension::Ptr> all_extensions() {
  std::vector<ov::Extension::Ptr> extensions;
  add<mmrednet::Involution>(extensions, "Involution");
  add<mmrednet::LocalAttention>(extensions, "LocalAttention");
  add<mmrednet::AxialAttention>(extensions, "AxialAttention");
  add<mmrednet::VectorAttention>(extensions, "VectorAttention");
  return extensions;
}

}  // namespace

OPENVINO_CREATE_EXTENSIONS(all_extensions());
