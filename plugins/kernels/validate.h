// SPDX-License-Identifier: Apache-2.0
//
// The rules that a problem and its tensors must meet. Host only, no GPU is touched. Each message names the argument,
// its value, the rule and the remedy.
#ifndef VORTA_TRT_KERNELS_VALIDATE_H_
#define VORTA_TRT_KERNELS_VALIDATE_H_

#include "vorta_trt/cross_attention.h"
#include "vorta_trt/routed_attention.h"

namespace vorta {

/// B and N become grid dimensions y and z of the launch.
inline constexpr int kMaxGridYZ = 65535;
/// B N is an int32, and rooms of 32 heads are counted beyond it.
inline constexpr int kMaxHeads = 1 << 30;
/// One warp ranks a bucket, two tokens a lane.
inline constexpr int kMaxBucketTokens = 64;
inline constexpr int kMaxHeadDim = 256;
/// Token ids are int32; the room above lets a block's last rows be counted without overflow.
inline constexpr long long kMaxTokens = (1LL << 31) - 1024;

vorta_status validate_problem(const vorta_routed_attention_problem* problem) noexcept;

/// Whether the tensors of a valid problem have no elements, so that there is nothing to do.
inline bool is_empty(const vorta_routed_attention_problem& problem) { return problem.batch == 0 || problem.heads == 0; }

/// `problem` must be valid. If it is empty, the pointers may be NULL. `workspace_bytes` is the size that it needs.
vorta_status validate_tensors(const vorta_routed_attention_problem& problem,
                              const vorta_routed_attention_tensors* tensors, size_t workspace_bytes) noexcept;

/// Checks everything but pointers and strides.
vorta_status validate_call(const vorta_cross_attention_params* call) noexcept;

inline bool is_empty(const vorta_cross_attention_params& call) {
  return call.batch == 0 || call.heads == 0 || call.query_tokens == 0;
}

/// Checks pointers and strides of a call that is valid otherwise.
vorta_status validate_tensors(const vorta_cross_attention_params& call) noexcept;

}  // namespace vorta

#endif  // VORTA_TRT_KERNELS_VALIDATE_H_
