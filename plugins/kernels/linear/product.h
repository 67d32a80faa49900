// SPDX-License-Identifier: Apache-2.0
//
// A product as every backend takes it: output [R, O] = activation(input [R, K] weight [O, K]^T + bias), scaled if fp8,
// and with the output itself added before the bias if it `adds`.
#ifndef VORTA_TRT_KERNELS_LINEAR_PRODUCT_H_
#define VORTA_TRT_KERNELS_LINEAR_PRODUCT_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "vorta_trt/linear.h"

namespace vorta::linear {

struct Product {
  vorta_dtype dtype;
  bool fp8;   // input and weight are e4m3 with scales
  bool gelu;  // after the bias
  bool adds;  // to what is in the output; not with fp8
  int64_t rows;
  int in_features, out_features;
  const void* input;
  const void* weight;
  const float* input_scale;   // [R], fp8
  const float* weight_scale;  // [O], fp8
  const void* bias;           // [O] of dtype, or NULL
  void* output;
  int64_t input_stride, weight_stride, output_stride;  // elements
  void* workspace;                                     // kProductWorkspace bytes
};

/// Scratch memory of cuBLASLt's kernels; NVIDIA names 32 MiB for Hopper.
inline constexpr size_t kProductWorkspace = size_t{32} << 20;

/// The kernel of this library: any GPU from 8.0 on, e4m3 as float16, in which it is exact.
cudaError_t launch_own_product(const Product& product, cudaStream_t stream);

/// GELU (tanh) of output [R, O] in place, for products whose kernel has no such epilogue.
cudaError_t launch_gelu(const Product& product, cudaStream_t stream);

/// Rows of 16 bits, of one matrix or of two side by side.
struct Rows {
  const void* input;
  int64_t input_stride;
  const void* second;  // of the last second_features; or NULL
  int64_t second_stride;
  int second_features;
};

/// Rows to e4m3 [R, K] (dense) and scales [R]; see vorta_quantize_params.
cudaError_t launch_quantize_rows(vorta_dtype dtype, int64_t rows, int features, const Rows& source, void* quantized,
                                 float* scale, cudaStream_t stream);

}  // namespace vorta::linear

#endif  // VORTA_TRT_KERNELS_LINEAR_PRODUCT_H_
