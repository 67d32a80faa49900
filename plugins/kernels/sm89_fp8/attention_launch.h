// SPDX-License-Identifier: Apache-2.0
#ifndef VORTA_TRT_KERNELS_SM89_FP8_ATTENTION_LAUNCH_H_
#define VORTA_TRT_KERNELS_SM89_FP8_ATTENTION_LAUNCH_H_

#include <cuda_runtime_api.h>

#include "../params.h"

namespace vorta::sm89_fp8 {

/// Enqueues the attention kernel of one instance, after the quantization. Instantiated in instances/.
template <vorta_dtype kDtype, int kHeadDim>
cudaError_t launch_attention(const RoutedAttentionParams& problem, cudaStream_t stream);

}  // namespace vorta::sm89_fp8

#endif  // VORTA_TRT_KERNELS_SM89_FP8_ATTENTION_LAUNCH_H_
