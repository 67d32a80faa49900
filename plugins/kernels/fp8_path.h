// SPDX-License-Identifier: Apache-2.0
#ifndef VORTA_TRT_KERNELS_FP8_PATH_H_
#define VORTA_TRT_KERNELS_FP8_PATH_H_

#include "kernel_path.h"

namespace vorta {

/// The family of 8-bit kernels that serves the call on the current device; fails with rule and remedy if there is none
/// for it, or none in this library.
vorta_status choose_fp8_path(const vorta_routed_attention_problem& problem, KernelPath* path) noexcept;

}  // namespace vorta

#endif  // VORTA_TRT_KERNELS_FP8_PATH_H_
