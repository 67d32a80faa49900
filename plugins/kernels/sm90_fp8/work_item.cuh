// SPDX-License-Identifier: Apache-2.0
//
// The work items of sm90/, with the keys as a list of chunks.
#ifndef VORTA_TRT_KERNELS_SM90_FP8_WORK_ITEM_CUH_
#define VORTA_TRT_KERNELS_SM90_FP8_WORK_ITEM_CUH_

#include "../fp8/chunk_list.h"
#include "../sm90/work_item.cuh"
#include "attention_params.h"

namespace vorta::sm90_fp8 {

using sm90::ItemKind;

struct WorkItem : sm90::QueryBlock {
  int key_blocks;       // in all
  int64_t first_chunk;  // of the head, among all
  int video_chunks;     // of the head
  int text_chunks;      // that hold a valid token
};

/// Decodes the `index`-th item. The whole warp calls it, and every lane gets the item.
template <class Traits>
__device__ WorkItem make_work_item(const AttentionParams& params, const sm90::HeadCounts& counts, int index) {
  const RoutedAttentionParams& problem = params.pattern.problem;
  WorkItem item{};
  const sm90::Assignment assignment = sm90::assign_item(params.pattern, counts, index);
  static_cast<sm90::QueryBlock&>(item) = sm90::make_query_block<Traits>(params.pattern, assignment);
  if (item.kind == ItemKind::kEnd) return item;
  const int64_t head = int64_t{item.sample} * problem.heads + item.head;
  item.first_chunk = head * params.images.chunks;
  item.video_chunks = params.images.video_chunks(sm90::route_of(item.kind));
  item.text_chunks = sm90::ceil_div(item.text_length, kChunk);
  const bool sliding = item.kind == ItemKind::kSliding;
  const int seen = sliding ? params.images.window_chunks(problem, item.group.window_origin) : item.video_chunks;
  item.key_blocks = sliding || item.keys > 0 ? sm90::ceil_div(seen + item.text_chunks, kChunks) : 0;
  return item;
}

/// The chunks of one work item.
__device__ inline fp8::ChunkList chunks_of_item(const AttentionParams& params, const WorkItem& item) {
  const RoutedAttentionParams& problem = params.pattern.problem;
  if (item.kind != ItemKind::kSliding) return {problem, item.video_chunks, item.text_chunks};
  return {problem, params.images, item.group.window_origin, item.text_chunks};
}

}  // namespace vorta::sm90_fp8

#endif  // VORTA_TRT_KERNELS_SM90_FP8_WORK_ITEM_CUH_
