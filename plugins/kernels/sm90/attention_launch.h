// SPDX-License-Identifier: Apache-2.0
#ifndef VORTA_TRT_KERNELS_SM90_ATTENTION_LAUNCH_H_
#define VORTA_TRT_KERNELS_SM90_ATTENTION_LAUNCH_H_

#include <cuda_runtime_api.h>

#include "../params.h"

namespace vorta::sm90 {

/// Enqueues the attention kernel of one instance, right after the coreset selection, or says why it cannot. Each is
/// instantiated in a file of its own in instances/, so that they compile in parallel.
template <vorta_dtype kDtype, int kHeadDim>
vorta_status launch_attention(const RoutedAttentionParams& problem, cudaStream_t stream);

/// Enqueues the kernel for a call without routes, with CrossBlockShape's blocks of keys. Instantiated for CrossHeadDims
/// only.
template <vorta_dtype kDtype, int kHeadDim>
vorta_status launch_cross_attention(const RoutedAttentionParams& problem, cudaStream_t stream);

}  // namespace vorta::sm90

#endif  // VORTA_TRT_KERNELS_SM90_ATTENTION_LAUNCH_H_
