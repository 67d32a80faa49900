// SPDX-License-Identifier: Apache-2.0
//
// The rules for a call of a linear layer. Host only; each message names argument, value, rule and remedy.
#ifndef VORTA_TRT_KERNELS_LINEAR_VALIDATE_LINEAR_H_
#define VORTA_TRT_KERNELS_LINEAR_VALIDATE_LINEAR_H_

#include "vorta_trt/linear.h"

namespace vorta::linear {

/// Checks everything but pointers and strides.
vorta_status validate(const vorta_linear_params* params) noexcept;

/// Checks pointers and strides of a call that is valid otherwise and has rows.
vorta_status validate_tensors(const vorta_linear_params& params, size_t workspace_bytes) noexcept;

/// The same two checks for a quantisation.
vorta_status validate(const vorta_quantize_params* params) noexcept;
vorta_status validate_tensors(const vorta_quantize_params& params) noexcept;

}  // namespace vorta::linear

#endif  // VORTA_TRT_KERNELS_LINEAR_VALIDATE_LINEAR_H_
