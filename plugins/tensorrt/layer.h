// SPDX-License-Identifier: Apache-2.0
//
// What a RoutedAttention layer asks of the kernels, whichever plugin interface it is asked through.
#ifndef VORTA_TENSORRT_LAYER_H_
#define VORTA_TENSORRT_LAYER_H_

#include <cstddef>
#include <vector>

#include "fields.h"

namespace vorta::plugin {

// Bytes of scratch memory for inputs of these shapes or a smaller batch; checks the shapes. Throws PluginError.
size_t workspaceBytes(const Attributes& attributes, trt::DataType type, const std::vector<trt::Dims>& inputs);

// Launches the layer on row-major tensors in the order of shapes.h, with a workspace of at least workspaceBytes(), on
// `stream`; does nothing else, for TensorRT captures it. The shape [B, S+T, N, D] was checked before. Throws
// PluginError.
void launch(const Attributes& attributes, trt::DataType type, const trt::Dims& query, const void* const* inputs,
            void* const* outputs, void* workspace, cudaStream_t stream);

}  // namespace vorta::plugin

#endif  // VORTA_TENSORRT_LAYER_H_
