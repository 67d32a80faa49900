// SPDX-License-Identifier: Apache-2.0
//
// The calls of block_operators.h as the kernels take them. HeadNorm is QKNormRotary of one tensor without a rotation,
// NormModulate is ResidualNormModulate without an update, so there are two kinds of calls.
#ifndef VORTA_TRT_KERNELS_NORMS_CALLS_H_
#define VORTA_TRT_KERNELS_NORMS_CALLS_H_

#include <cuda_runtime_api.h>

#include "vorta_trt/block_operators.h"

namespace vorta::norms {

/// Elements of 16 bits in a vector of 16 bytes, the unit of every load and store.
inline constexpr int kVector = 8;
inline constexpr int kMaxFeatures = 8192;

/// A tensor [B, X, E] of 16 bits; strides in vectors.
struct RowTensor {
  uint4* data;
  int64_t batch_stride, token_stride;
};

/// The rows of both kinds of calls: all tokens of all samples.
struct RowShape {
  int32_t rows;     // B X
  int32_t tokens;   // X
  int32_t vectors;  // of a row, E / kVector
  float epsilon;
};

struct HeadNormCall {
  RowShape shape;
  int32_t head_vectors;  // D / kVector
  bool per_head;         // the mean is over D, not over E
  bool weight_float32;
  const float *cos, *sin;  // [X, D/2]; NULL without a rotation
  struct {
    RowTensor input, output;
    const void* weight;
  } tensors[2];  // the second with a rotation only
};

struct NormModulateCall {
  RowShape shape;
  int32_t first_tokens;
  RowTensor input, update;            // update.data NULL: no residual
  vorta_modulation gate;              // with an update only
  vorta_modulation scale, shift;      // strides in elements
  RowTensor residual_output, output;  // output.data NULL: not wanted
  uint2* quantized;                   // NULL: not wanted
  float* quantized_scale;
};

cudaError_t launch_head_norm(const HeadNormCall& call, vorta_dtype dtype, cudaStream_t stream);
cudaError_t launch_norm_modulate(const NormModulateCall& call, vorta_dtype dtype, cudaStream_t stream);

}  // namespace vorta::norms

#endif  // VORTA_TRT_KERNELS_NORMS_CALLS_H_
