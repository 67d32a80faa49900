// SPDX-License-Identifier: Apache-2.0
//
// The work items of sm90/, with the keys as a list of chunks.
#ifndef VORTA_TRT_KERNELS_SM90_FP8_WORK_ITEM_CUH_
#define VORTA_TRT_KERNELS_SM90_FP8_WORK_ITEM_CUH_

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
  const int seen = sliding ? problem.window[0] * problem.window[1] * problem.window[2] * params.images.tile_chunks
                           : item.video_chunks;
  item.key_blocks = sliding || item.keys > 0 ? sm90::ceil_div(seen + item.text_chunks, kChunks) : 0;
  return item;
}

/// The chunks of one work item, in order.
class ChunkList {
 public:
  __device__ ChunkList(const AttentionParams& params, const WorkItem& item)
      : text_(item.video_chunks),
        text_left_(item.text_chunks),
        empty_(item.video_chunks + static_cast<int>(chunks_of(params.pattern.problem.text_tokens))) {
    if (item.kind != ItemKind::kSliding) {
      left_ = item.video_chunks;
      return;
    }
    const RoutedAttentionParams& problem = params.pattern.problem;
    const BoxPartition& tiles = problem.tiles;
    const auto tile = [&](int axis) { return item.group.window_origin[axis] / tiles.extent[axis]; };
    row_stride_ = tiles.boxes[2] * params.images.tile_chunks;
    plane_stride_ = tiles.boxes[1] * row_stride_;
    row_chunks_ = problem.window[2] * params.images.tile_chunks;
    rows_ = rows_left_ = problem.window[1];
    planes_left_ = problem.window[0];
    plane_ = row_ = tile(0) * plane_stride_ + tile(1) * row_stride_ + tile(2) * params.images.tile_chunks;
  }

  /// The next chunk of the head; the one without keys behind the last.
  __device__ int next() {
    if (left_ == 0 && !next_run()) return empty_;
    --left_;
    return chunk_++;
  }

 private:
  __device__ bool next_run() {
    if (planes_left_ > 0) {
      chunk_ = row_;
      left_ = row_chunks_;
      row_ += row_stride_;
      if (--rows_left_ == 0) {
        rows_left_ = rows_;
        --planes_left_;
        plane_ += plane_stride_;
        row_ = plane_;
      }
      return true;
    }
    chunk_ = text_;
    left_ = text_left_;
    text_left_ = 0;
    return left_ > 0;
  }

  int text_, text_left_, empty_;
  int chunk_ = 0, left_ = 0;
  int planes_left_ = 0, rows_ = 0, rows_left_ = 0, plane_ = 0, row_ = 0;  // of the window; positions in chunks
  int plane_stride_ = 0, row_stride_ = 0, row_chunks_ = 0;
};

}  // namespace vorta::sm90_fp8

#endif  // VORTA_TRT_KERNELS_SM90_FP8_WORK_ITEM_CUH_
