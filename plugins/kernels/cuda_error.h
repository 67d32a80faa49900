// SPDX-License-Identifier: Apache-2.0
#ifndef VORTA_TRT_KERNELS_CUDA_ERROR_H_
#define VORTA_TRT_KERNELS_CUDA_ERROR_H_

#include <cuda_runtime_api.h>

#include "vorta_trt/routed_attention.h"

namespace vorta {

/// Turns a failed CUDA call of ours into a status and a message with what to do next, and clears it: nobody who asks
/// CUDA for the last error of this thread afterwards gets ours.
vorta_status report(const char* step, cudaError_t error) noexcept;

}  // namespace vorta

#endif  // VORTA_TRT_KERNELS_CUDA_ERROR_H_
