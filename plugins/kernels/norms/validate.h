// SPDX-License-Identifier: Apache-2.0
//
// The rules of block_operators.h. Host only, no GPU is touched. Each message names the argument, its value, the rule
// and the remedy.
#ifndef VORTA_TRT_KERNELS_NORMS_VALIDATE_H_
#define VORTA_TRT_KERNELS_NORMS_VALIDATE_H_

#include "vorta_trt/block_operators.h"

namespace vorta::norms {

/// Checks everything but pointers and strides; `params` may be NULL.
vorta_status validate_sizes(const vorta_head_norm_params* params) noexcept;
vorta_status validate_sizes(const vorta_qk_norm_rotary_params* params) noexcept;
vorta_status validate_sizes(const vorta_norm_modulate_params* params) noexcept;
vorta_status validate_sizes(const vorta_residual_norm_modulate_params* params) noexcept;

/// Checks pointers and strides of a call that is valid otherwise and not empty.
vorta_status validate_tensors(const vorta_head_norm_params& p) noexcept;
vorta_status validate_tensors(const vorta_qk_norm_rotary_params& p) noexcept;
vorta_status validate_tensors(const vorta_norm_modulate_params& p) noexcept;
vorta_status validate_tensors(const vorta_residual_norm_modulate_params& p) noexcept;

inline int32_t features_of(const vorta_head_norm_params& p) { return p.heads * p.head_dim; }
inline int32_t features_of(const vorta_qk_norm_rotary_params& p) { return p.heads * p.head_dim; }
inline int32_t features_of(const vorta_norm_modulate_params& p) { return p.features; }
inline int32_t features_of(const vorta_residual_norm_modulate_params& p) { return p.features; }

/// Whether there is nothing to do for a valid call.
template <class Params>
bool is_empty(const Params& p) {
  return p.batch == 0 || p.token_count == 0 || features_of(p) == 0;
}

}  // namespace vorta::norms

#endif  // VORTA_TRT_KERNELS_NORMS_VALIDATE_H_
