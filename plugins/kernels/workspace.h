// SPDX-License-Identifier: Apache-2.0
//
// What lies in the workspace: the coreset as lists of token ids and, where the head dimension has a kernel that reads
// them, its keys and values as contiguous rows. One row of lists, one block of rows for each sample and head:
//
//   kept_queries    int32 [B, N, kept_tokens]         bucket after bucket, its centre first
//   dropped_queries int32 [B, N, S - kept_tokens]     bucket after bucket; bucket_partition.h says where each starts
//   kept_keys       int32 [B, N, kept_tokens]         only if the keys choose for themselves
//   compact_key     [B, N, kept_tokens + T, D]        only if D is 64 or 128 and the precision is "same"; rows of
//   compact_value   [B, N, kept_tokens + T, D]        kept_keys in their order, then the text, with zeros for padding
//   chunk_keys      int8 [B, N, chunks, 32 D]         only for attention_precision fp8 and D of 64 or 128: keys and
//   chunk_values    e4m3 [B, N, chunks, 32 D]         values of every head in 8 bits, see fp8/images.h
//   chunk_notes     16 bytes [B, N, chunks]
//   head_statistics bfloat16 [B, N, 4, D]             what was done to the channels before
//   work_counter    uint32 [64]                       zero when the attention starts
//
// Each starts at a multiple of 256 bytes. What belongs to heads that are not routed to the coreset is not written. The
// bytes depend on the problem alone, not on routes or on the GPU: compact rows are reserved even where no kernel uses
// them.
#ifndef VORTA_TRT_KERNELS_WORKSPACE_H_
#define VORTA_TRT_KERNELS_WORKSPACE_H_

#include <cstddef>
#include <cstdint>

#include "bucket_partition.h"
#include "fp8/chunks.h"
#include "kernel_families.h"
#include "vorta_trt/routed_attention.h"

namespace vorta {

inline constexpr int kWorkCounters = 64;

struct WorkspaceLayout {
  size_t kept_queries;  // offsets in bytes
  size_t dropped_queries;
  size_t kept_keys;  // that of kept_queries if the queries choose the keys
  size_t compact_key;
  size_t compact_value;
  size_t chunk_keys;
  size_t chunk_values;
  size_t chunk_notes;
  size_t head_statistics;
  size_t work_counter;
  size_t bytes;
};

/// Whether the workspace has room for keys and values in 8 bits.
inline bool has_chunks(const vorta_routed_attention_problem& problem) {
  return problem.attention_precision == VORTA_PRECISION_FP8 && sm90_fp8::HeadDims::has(problem.head_dim);
}

/// Whether it has room for the compact keys and values of coreset heads.
inline bool has_compact_rows(const vorta_routed_attention_problem& problem) {
  return sm90::HeadDims::has(problem.head_dim) && !has_chunks(problem);
}

inline WorkspaceLayout workspace_layout(const vorta_routed_attention_problem& problem) {
  constexpr size_t kAlignment = 256;
  const size_t video_tokens = size_t{1} * problem.grid[0] * problem.grid[1] * problem.grid[2];
  const size_t kept = BucketPartition(problem.grid, problem.bucket, problem.keep).kept_tokens;
  const size_t all_heads = size_t{1} * problem.batch * problem.heads;
  const size_t list_entry = all_heads * sizeof(int32_t);
  const size_t compact_row = has_compact_rows(problem) ? all_heads * problem.head_dim * sizeof(uint16_t) : 0;

  WorkspaceLayout layout{};
  const auto append = [&](size_t bytes) {
    const size_t offset = layout.bytes;
    layout.bytes += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return offset;
  };
  layout.kept_queries = append(list_entry * kept);
  layout.dropped_queries = append(list_entry * (video_tokens - kept));
  layout.kept_keys = problem.coreset_keys == VORTA_KEYS_BY_KEY ? append(list_entry * kept) : layout.kept_queries;
  layout.compact_key = append(compact_row * (kept + problem.text_tokens));
  layout.compact_value = append(compact_row * (kept + problem.text_tokens));
  if (has_chunks(problem)) {
    const size_t chunks = all_heads * fp8::chunks_per_head(problem);
    layout.chunk_keys = append(chunks * fp8::kChunk * problem.head_dim);
    layout.chunk_values = append(chunks * fp8::kChunk * problem.head_dim);
    layout.chunk_notes = append(chunks * fp8::kChunkNoteBytes);
    layout.head_statistics = append(all_heads * fp8::kStatisticsRows * problem.head_dim * sizeof(uint16_t));
  }
  layout.work_counter = append(kWorkCounters * sizeof(uint32_t));
  return layout;
}

}  // namespace vorta

#endif  // VORTA_TRT_KERNELS_WORKSPACE_H_
