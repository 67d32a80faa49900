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

/// What calls are held to: nothing, the kernels on mma.sync on Hopper, too, those of 16 bits or also those of 8 bits,
/// or a family that does not exist.
enum class ForcedKernels : int { kNone, kSm80, kSm89Fp8, kUnknown };

/// The environment variable that forces a family. It is read once, when the library is loaded.
inline constexpr const char* kKernelPathVariable = "VORTA_TRT_KERNELS";

/// What vorta_force_kernels() said last, else the environment.
ForcedKernels forced_kernels() noexcept;

/// The same by name: "" for none, and what the environment said for one that does not exist.
const char* forced_kernels_name() noexcept;

/// Holds calls from now on to `family`, which is null, "" or a name; false if there is none of that name.
bool force_kernels(const char* family) noexcept;

/// 10 * major + minor of the current device.
cudaError_t compute_capability(int* result);

/// The family of 16-bit kernels that serves the call on the current device.
cudaError_t choose_kernel_path(const vorta_routed_attention_problem& problem,
                               const vorta_routed_attention_tensors& tensors, KernelPath* path);
cudaError_t choose_kernel_path(const vorta_cross_attention_params& call, KernelPath* path);

}  // namespace vorta

#endif  // VORTA_TRT_KERNELS_KERNEL_PATH_H_
