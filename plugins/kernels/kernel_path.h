// SPDX-License-Identifier: Apache-2.0
#ifndef VORTA_TRT_KERNELS_KERNEL_PATH_H_
#define VORTA_TRT_KERNELS_KERNEL_PATH_H_

#include <cuda_runtime_api.h>

#include "vorta_trt/cross_attention.h"
#include "vorta_trt/routed_attention.h"

namespace vorta {

/// The families of attention kernels: mma.sync for every GPU from SM80 on, wgmma and TMA for Hopper, and both with
/// 8-bit products.
enum class KernelPath { kSm80, kSm90, kSm89Fp8, kSm90Fp8 };

/// The kernels that calls are forced to take. kNone: the GPU decides. kSm80: the 16-bit kernels on mma.sync, on Hopper,
/// too. kSm89Fp8: those and the 8-bit kernels on mma.sync. kUnknown: the environment names no existing family.
enum class ForcedKernels : int { kNone, kSm80, kSm89Fp8, kUnknown };

/// The environment variable that forces a family. It is read once, when the library is loaded.
inline constexpr const char* kKernelPathVariable = "VORTA_TRT_KERNELS";

/// The choice of the last vorta_force_kernels() call, else that of the environment.
ForcedKernels forced_kernels() noexcept;

/// The name of the forced family: "" for none; for a family that does not exist, the text in the environment.
const char* forced_kernels_name() noexcept;

/// Makes later calls take `family`, which is null, "" or a name. Returns false if there is no family of that name.
bool force_kernels(const char* family) noexcept;

/// 10 * major + minor of the current device.
cudaError_t compute_capability(int* result);

/// The family of 16-bit kernels that serves the call on the current device.
cudaError_t choose_kernel_path(const vorta_routed_attention_problem& problem,
                               const vorta_routed_attention_tensors& tensors, KernelPath* path);
cudaError_t choose_kernel_path(const vorta_cross_attention_params& call, KernelPath* path);

}  // namespace vorta

#endif  // VORTA_TRT_KERNELS_KERNEL_PATH_H_
