// SPDX-License-Identifier: Apache-2.0
#ifndef VORTA_TRT_KERNELS_LAUNCH_H_
#define VORTA_TRT_KERNELS_LAUNCH_H_

#include "vorta_trt/cross_attention.h"
#include "vorta_trt/routed_attention.h"

namespace vorta {

/// Enqueues the operator: the coreset selection, then the attention of all branches. Both structs must be valid;
/// `stream` is a cudaStream_t.
vorta_status launch(const vorta_routed_attention_problem& problem, const vorta_routed_attention_tensors& tensors,
                    void* stream) noexcept;

/// Enqueues attention to another sequence; the call must be valid and not empty.
vorta_status launch(const vorta_cross_attention_params& call, void* stream) noexcept;

}  // namespace vorta

#endif  // VORTA_TRT_KERNELS_LAUNCH_H_
