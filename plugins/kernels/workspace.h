// SPDX-License-Identifier: Apache-2.0
//
// What lies in the workspace: the coreset as lists of token ids, one row for each sample and head.
//
//   kept_queries    int32 [B, N, buckets, keep]                  slot 0 is the bucket's centre
//   dropped_queries int32 [B, N, buckets, bucket_tokens - keep]
//   kept_keys       int32 [B, N, buckets, keep]                  only if the keys choose for themselves
//
// Each list starts at a multiple of 256 bytes. Rows of heads that are not routed to the coreset are not written.
#ifndef VORTA_TRT_KERNELS_WORKSPACE_H_
#define VORTA_TRT_KERNELS_WORKSPACE_H_

#include <cstddef>
#include <cstdint>

#include "vorta_trt/routed_attention.h"

namespace vorta {

struct WorkspaceLayout {
  size_t kept_queries;  // offsets in bytes
  size_t dropped_queries;
  size_t kept_keys;  // that of kept_queries if the queries choose the keys
  size_t bytes;
};

inline WorkspaceLayout workspace_layout(const vorta_routed_attention_problem& problem) {
  constexpr size_t kAlignment = 256;
  const auto list_bytes = [&](size_t tokens_per_head) {
    const size_t bytes = sizeof(int32_t) * problem.batch * problem.heads * tokens_per_head;
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  };
  const size_t video_tokens = size_t{1} * problem.grid[0] * problem.grid[1] * problem.grid[2];
  const size_t bucket_tokens = size_t{1} * problem.bucket[0] * problem.bucket[1] * problem.bucket[2];
  const size_t kept = video_tokens / bucket_tokens * problem.keep;

  WorkspaceLayout layout{};
  layout.kept_queries = 0;
  layout.dropped_queries = list_bytes(kept);
  layout.bytes = layout.dropped_queries + list_bytes(video_tokens - kept);
  layout.kept_keys = layout.kept_queries;
  if (problem.coreset_keys == VORTA_KEYS_BY_KEY) {
    layout.kept_keys = layout.bytes;
    layout.bytes += list_bytes(kept);
  }
  return layout;
}

}  // namespace vorta

#endif  // VORTA_TRT_KERNELS_WORKSPACE_H_
