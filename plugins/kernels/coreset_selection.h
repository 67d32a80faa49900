// SPDX-License-Identifier: Apache-2.0
#ifndef VORTA_TRT_KERNELS_CORESET_SELECTION_H_
#define VORTA_TRT_KERNELS_CORESET_SELECTION_H_

#include <cuda_runtime_api.h>

#include "params.h"

namespace vorta {

/// Fills the workspace's lists for every head that `routes` sends to the coreset; other heads cost an empty block.
cudaError_t launch_coreset_selection(const RoutedAttentionParams& params, vorta_dtype dtype, cudaStream_t stream);

}  // namespace vorta

#endif  // VORTA_TRT_KERNELS_CORESET_SELECTION_H_
