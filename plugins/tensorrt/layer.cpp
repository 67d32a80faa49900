// SPDX-License-Identifier: Apache-2.0
#include "layer.h"

#include "logger.h"
#include "shapes.h"

namespace vorta::plugin {
namespace {

// Strides of a row-major [B, S+T, N, D] tensor along batch, token and head, in elements.
void setStrides(const trt::Dims& dims, int64_t (&strides)[3]) {
  strides[2] = dims.d[3];
  strides[1] = dims.d[2] * strides[2];
  strides[0] = dims.d[1] * strides[1];
}

}  // namespace

size_t workspaceBytes(const Attributes& attributes, trt::DataType type, const std::vector<trt::Dims>& inputs) {
  const auto problem = checkedProblemOf(attributes, type, inputs);
  size_t bytes = 0;
  if (vorta_routed_attention_workspace_size(&problem, &bytes) != VORTA_OK) throw PluginError(vorta_last_error());
  return bytes;
}

void launch(const Attributes& attributes, trt::DataType type, const trt::Dims& query, const void* const* inputs,
            void* const* outputs, void* workspace, cudaStream_t stream) {
  const auto problem = problemOf(attributes, type, query);
  vorta_routed_attention_tensors tensors{};
  tensors.struct_size = sizeof(tensors);
  tensors.query = inputs[kQuery];
  tensors.key = inputs[kKey];
  tensors.value = inputs[kValue];
  tensors.routes = static_cast<const int32_t*>(inputs[kRoutes]);
  if (attributes.textTokens() > 0) tensors.text_length = static_cast<const int32_t*>(inputs[kTextLength]);
  tensors.output = outputs[kAttention];
  for (auto* strides : {&tensors.query_stride, &tensors.key_stride, &tensors.value_stride, &tensors.output_stride}) {
    setStrides(query, *strides);
  }
  tensors.workspace = workspace;
  // TensorRT gave what it was asked for at the profile's maximum, which is at least this.
  if (vorta_routed_attention_workspace_size(&problem, &tensors.workspace_bytes) != VORTA_OK ||
      vorta_routed_attention_enqueue(&problem, &tensors, stream) != VORTA_OK) {
    throw PluginError(vorta_last_error());
  }
}

}  // namespace vorta::plugin
