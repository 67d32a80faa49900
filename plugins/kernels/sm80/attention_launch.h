// SPDX-License-Identifier: Apache-2.0
#ifndef VORTA_TRT_KERNELS_SM80_ATTENTION_LAUNCH_H_
#define VORTA_TRT_KERNELS_SM80_ATTENTION_LAUNCH_H_

#include <cuda_runtime_api.h>

#include "params.h"

namespace vorta::sm80 {

/// Enqueues the attention kernel of one instance. Each is instantiated in a file of its own in instances/, so that
/// they compile in parallel.
template <vorta_dtype kDtype, int kInstanceHeadDim>
cudaError_t launch_attention(const RoutedAttentionParams& params, cudaStream_t stream);

}  // namespace vorta::sm80

#endif  // VORTA_TRT_KERNELS_SM80_ATTENTION_LAUNCH_H_
