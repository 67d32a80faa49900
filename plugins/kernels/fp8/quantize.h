// SPDX-License-Identifier: Apache-2.0
#ifndef VORTA_TRT_KERNELS_FP8_QUANTIZE_H_
#define VORTA_TRT_KERNELS_FP8_QUANTIZE_H_

#include <cuda_runtime_api.h>

#include "images.h"

namespace vorta::fp8 {

/// Writes the statistics of every head and the images of its K and V, in the order that its route wants. Comes after
/// the coreset selection.
cudaError_t launch_quantization(const RoutedAttentionParams& problem, vorta_dtype dtype, cudaStream_t stream);

}  // namespace vorta::fp8

#endif  // VORTA_TRT_KERNELS_FP8_QUANTIZE_H_
