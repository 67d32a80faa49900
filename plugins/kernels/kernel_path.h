// SPDX-License-Identifier: Apache-2.0
#ifndef VORTA_TRT_KERNELS_KERNEL_PATH_H_
#define VORTA_TRT_KERNELS_KERNEL_PATH_H_

#include <cuda_runtime_api.h>

#include "vorta_trt/routed_attention.h"

namespace vorta {

/// The families of attention kernels: mma.sync for every GPU from SM80 on, wgmma and TMA for Hopper.
enum class KernelPath { kSm80, kSm90 };

/// The environment variable that forces a family: "sm80" takes the generic one on Hopper, too.
inline constexpr const char* kKernelPathVariable = "VORTA_TRT_KERNELS";

/// False if the environment asks for a family that does not exist; `value` is what it says, null if nothing.
bool is_kernel_path_variable_valid(const char** value);

/// The family that serves the call on the current device.
cudaError_t choose_kernel_path(const vorta_routed_attention_problem& problem,
                               const vorta_routed_attention_tensors& tensors, KernelPath* path);

}  // namespace vorta

#endif  // VORTA_TRT_KERNELS_KERNEL_PATH_H_
