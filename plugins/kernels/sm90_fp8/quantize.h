// SPDX-License-Identifier: Apache-2.0
#ifndef VORTA_TRT_KERNELS_SM90_FP8_QUANTIZE_H_
#define VORTA_TRT_KERNELS_SM90_FP8_QUANTIZE_H_

#include <cuda_runtime_api.h>

#include "images.h"

namespace vorta::sm90_fp8 {

/// Writes the images of K and V of every head, in the order that its route wants. Comes after the coreset selection.
cudaError_t launch_quantization(const RoutedAttentionParams& problem, vorta_dtype dtype, cudaStream_t stream);

}  // namespace vorta::sm90_fp8

#endif  // VORTA_TRT_KERNELS_SM90_FP8_QUANTIZE_H_
