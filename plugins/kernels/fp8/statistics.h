// SPDX-License-Identifier: Apache-2.0
#ifndef VORTA_TRT_KERNELS_FP8_STATISTICS_H_
#define VORTA_TRT_KERNELS_FP8_STATISTICS_H_

#include <cuda_runtime_api.h>

#include "images.h"

namespace vorta::fp8 {

/// Writes `images.statistics` of every head from a sample of its video tokens.
cudaError_t launch_statistics(const RoutedAttentionParams& problem, const Images& images, vorta_dtype dtype,
                              cudaStream_t stream);

}  // namespace vorta::fp8

#endif  // VORTA_TRT_KERNELS_FP8_STATISTICS_H_
