// SPDX-License-Identifier: Apache-2.0
//
// The sparsity pattern: which heads make which work items, which token stands in which query row of an item, and which
// keys it walks over. The mainloop knows no branch; the branches differ in this file and in producer.cuh alone.
//
// A head's items depend on its route, which only the device knows. Item numbers run through the heads of one kind after
// the other, longest items first, and heads of a kind in their order: neighbours share their keys in the L2 cache.
//
// `routes` and `text_length` are read by one thread block of a cluster alone, which tells the others what it found.
// Were they to change meanwhile, the blocks of a cluster would otherwise wait for each other's keys for ever.
#ifndef VORTA_TRT_KERNELS_SM90_WORK_ITEM_CUH_
#define VORTA_TRT_KERNELS_SM90_WORK_ITEM_CUH_

#include "attention_params.h"

namespace vorta::sm90 {

enum class ItemKind : int {
  kRaster,   // rows and keys are token ids as they are: full heads
  kText,     // likewise: the text queries of sliding heads
  kCoreset,  // rows and keys are kept tokens, then text
  kSliding,  // rows are tokens of a query group, keys of its window, then text
  kEnd       // no more work
};

/// The identity of an item: everything that its thread blocks have to agree on.
struct alignas(16) Assignment {
  ItemKind kind;
  int head;         // sample * N + head
  int block;        // of the head's items of this kind
  int text_length;  // valid text tokens
};

/// Which query rows an item has, and what they see.
struct QueryBlock {
  ItemKind kind;
  int sample, head;
  int first_row;          // in the branch's order
  int rows;               // of the block that exist
  int text_length;        // valid text tokens
  int keys;               // raster, coreset: keys in all; 0 if every row is padding
  QueryGroupBlock group;  // sliding
};

/// Consecutive blocks of keys, all but the last alike.
struct KeyRun {
  int end;                // the block behind the last
  int valid, last_valid;  // keys of a block, and of the last one: the leading rows
};

struct WorkItem : QueryBlock {
  static constexpr int kRuns = WindowCut::kParts + 1;

  int key_blocks;      // in all
  KeyRun runs[kRuns];  // the parts of a window, which are empty unless sliding, and consecutive tokens
  int window_shape;    // sliding: as in WindowCut
  bool last_dirty;     // the last block's rows without keys hold bytes that nobody may use, not zeros
  bool shared_keys;    // the thread blocks of the cluster go over the same keys
  int first_partial;   // no block before it has rows that are no keys

  /// Keys in a block: its leading rows.
  __device__ int valid_keys(int block) const {
    const KeyRun* run = runs;
#pragma unroll 1
    while (block >= run->end) ++run;
    return block == run->end - 1 ? run->last_valid : run->valid;
  }
  __device__ int last_valid() const { return runs[kRuns - 1].last_valid; }
  __device__ bool is_dirty(int block) const { return last_dirty && block == key_blocks - 1; }
};

/// Value of a query row: a token id, kNoRow, or ~token for padded text, whose output is 0.
inline constexpr int kNoRow = INT32_MIN;

/// Heads by kind, counted once by a warp.
struct HeadCounts {
  int full, coreset, sliding;
};

__device__ inline ItemKind kind_of(int route) {
  return route == VORTA_CORESET ? ItemKind::kCoreset
                                : (route == VORTA_SLIDING ? ItemKind::kSliding : ItemKind::kRaster);
}

/// The route of a head that has items of this kind.
__device__ inline vorta_route route_of(ItemKind kind) {
  if (kind == ItemKind::kCoreset) return VORTA_CORESET;
  return kind == ItemKind::kRaster ? VORTA_FULL : VORTA_SLIDING;
}

/// The whole warp calls it.
__device__ inline HeadCounts count_heads(const RoutedAttentionParams& problem) {
  const int heads = problem.batch * problem.heads, lane = threadIdx.x % 32;
  HeadCounts counts{};
  if (problem.routes == nullptr) return {heads, 0, 0};
  for (int first = 0; first < heads; first += 32) {
    const bool in_range = first + lane < heads;
    const ItemKind kind = in_range ? kind_of(problem.routes[first + lane]) : ItemKind::kEnd;
    counts.full += __popc(__ballot_sync(0xffffffffu, kind == ItemKind::kRaster));
    counts.coreset += __popc(__ballot_sync(0xffffffffu, kind == ItemKind::kCoreset));
    counts.sliding += __popc(__ballot_sync(0xffffffffu, kind == ItemKind::kSliding));
  }
  return counts;
}

/// The head (sample * N + head) of the given kind that comes after `before` others of it; the last head of all where
/// the routes have changed since they were counted. The whole warp calls it.
__device__ inline int find_head(const RoutedAttentionParams& problem, ItemKind kind, int before) {
  const int heads = problem.batch * problem.heads, lane = threadIdx.x % 32;
  if (problem.routes == nullptr) return before;
  for (int first = 0; first < heads; first += 32) {
    const bool matches = first + lane < heads && kind_of(problem.routes[first + lane]) == kind;
    const unsigned found = __ballot_sync(0xffffffffu, matches);
    const int count = __popc(found);
    if (before < count) {
      const bool wanted = matches && __popc(found & ((1u << lane) - 1)) == before;
      return first + __ffs(__ballot_sync(0xffffffffu, wanted)) - 1;
    }
    before -= count;
  }
  return heads - 1;
}

__device__ inline int ceil_div(int value, int divisor) { return (value + divisor - 1) / divisor; }

/// Looks the `index`-th item up. The whole warp calls it, and every lane gets the answer.
__device__ inline Assignment assign_item(const Pattern& params, const HeadCounts& counts, int index) {
  const RoutedAttentionParams& problem = params.problem;
  Assignment item{ItemKind::kRaster, 0, 0, 0};
  ItemKind heads_of = ItemKind::kRaster;
  int per_head = params.items_full;
  if (index >= counts.full * per_head) {
    index -= counts.full * per_head;
    item.kind = ItemKind::kText;
    heads_of = ItemKind::kSliding;
    per_head = params.items_text;
    if (index >= counts.sliding * per_head) {
      index -= counts.sliding * per_head;
      item.kind = heads_of = ItemKind::kCoreset;
      per_head = params.items_coreset;
      if (index >= counts.coreset * per_head) {
        index -= counts.coreset * per_head;
        item.kind = heads_of = ItemKind::kSliding;
        per_head = params.items_sliding;
        if (index >= counts.sliding * per_head) {
          item.kind = ItemKind::kEnd;
          return item;
        }
      }
    }
  }
  const int before = index / per_head;
  item.block = index - before * per_head;
  item.head = find_head(problem, heads_of, before);
  if (problem.text_tokens > 0) {
    item.text_length = min(max(problem.text_length[item.head / problem.heads], 0), problem.text_tokens);
  }
  return item;
}

/// The query rows that the `rank`-th thread block of a cluster has in an item. The rows of all thread blocks belong to
/// one head, and either all thread blocks have keys or none has.
template <class Traits>
__device__ QueryBlock make_query_block(const Pattern& params, const Assignment& assignment, int rank = 0) {
  const RoutedAttentionParams& problem = params.problem;
  QueryBlock item{};
  item.kind = assignment.kind;
  if (item.kind == ItemKind::kEnd) return item;
  item.sample = assignment.head / problem.heads;
  item.head = assignment.head - item.sample * problem.heads;
  item.text_length = assignment.text_length;
  if (item.kind == ItemKind::kSliding) {
    item.group = query_group_block(params.sliding, assignment.block, rank, Traits::kRows);
    item.rows = item.group.rows;
    return item;
  }
  const bool coreset = item.kind == ItemKind::kCoreset;
  const int video = coreset ? problem.kept_tokens : problem.video_tokens;
  const int first_row = item.kind == ItemKind::kText ? video : 0;
  const int first_of_cluster = first_row + assignment.block * Traits::kCluster * Traits::kRows;
  item.first_row = first_of_cluster + rank * Traits::kRows;
  item.rows = max(0, min(Traits::kRows, video + problem.text_tokens - item.first_row));
  const int keys = coreset ? problem.kept_tokens : problem.video_keys;
  item.keys = first_of_cluster < video + item.text_length ? keys + item.text_length : 0;
  return item;
}

/// The blocks of one part of a window of `frames` frames; `first`: number of the first block.
__device__ inline KeyRun window_run(const WindowPart& part, int frames, int first) {
  if (part.height == 0) return {first, 0, 0};
  const int boxes = frames * part.boxes_per_frame, blocks = ceil_div(boxes, part.boxes_per_block);
  return {first + blocks, part.boxes_per_block * part.box_tokens(),
          (boxes - (blocks - 1) * part.boxes_per_block) * part.box_tokens()};
}

/// The result of make_query_block() with its blocks of keys; all thread blocks of an item have equally many of these.
template <class Traits>
__device__ WorkItem make_work_item(const AttentionParams& params, const Assignment& assignment, int rank) {
  const RoutedAttentionParams& problem = params.problem;
  WorkItem item{};
  static_cast<QueryBlock&>(item) = make_query_block<Traits>(params, assignment, rank);
  if (item.kind == ItemKind::kEnd) return item;
  item.shared_keys = true;
  int keys = item.keys, rows = problem.key_tokens;  // of consecutive blocks
  int first_partial = INT32_MAX;
  if (item.kind == ItemKind::kSliding) {
    item.shared_keys = item.group.shared_window;
    item.window_shape = params.cut.shape_of(item.group.window_extent);
#pragma unroll
    for (int part = 0; part < WindowCut::kParts; ++part) {
      const int first = item.key_blocks;
      const KeyRun run = window_run(params.cut.part[item.window_shape][part], item.group.window_extent[0], first);
      item.runs[part] = run;
      item.key_blocks = run.end;
      if (run.end == first || run.last_valid == Traits::kKeys) continue;
      first_partial = min(first_partial, run.valid == Traits::kKeys ? run.end - 1 : first);
    }
    keys = item.text_length;
    rows = problem.text_tokens;
  } else if (item.kind == ItemKind::kCoreset) {
    rows = keys;  // the selection writes zeros behind the valid text
  }
  const int blocks = ceil_div(keys, Traits::kKeys);
  item.key_blocks += blocks;
  const int last_valid = keys - (blocks - 1) * Traits::kKeys;
  item.runs[WindowCut::kParts] = {item.key_blocks, Traits::kKeys, last_valid};
  item.last_dirty = last_valid < Traits::kKeys && keys < rows;
  item.first_partial = min(first_partial, item.key_blocks - 1);
  return item;
}

/// The dropped tokens that take the output of a row, too: their place in a list.
struct Copies {
  int first, count;  // in the head's list of dropped tokens
};

/// The copies of row `row` of a coreset item: the tokens dropped from the bucket whose centre is in that row.
__device__ inline Copies row_copies(const RoutedAttentionParams& problem, const QueryBlock& item, int row) {
  const int position = item.first_row + row;
  if (position >= problem.kept_tokens) return {0, 0};
  const KeptRow kept = problem.buckets.kept_row(position);
  return {kept.first_dropped, kept.slot == 0 ? kept.dropped : 0};
}

/// The value of row `row` of the item; see kNoRow.
__device__ inline int row_token(const RoutedAttentionParams& problem, const QueryBlock& item, int row) {
  if (row >= item.rows) return kNoRow;
  if (item.kind == ItemKind::kSliding) return item.group.token(problem.tiles, row);
  int position = item.first_row + row;
  if (item.kind == ItemKind::kCoreset) {
    if (position < problem.kept_tokens) {
      const int64_t head = int64_t{item.sample} * problem.heads + item.head;
      return listed_token(problem, problem.kept_queries + head * problem.kept_tokens + position);
    }
    position += problem.video_tokens - problem.kept_tokens;
  }
  return position < problem.video_tokens + item.text_length ? position : ~position;
}

}  // namespace vorta::sm90

#endif  // VORTA_TRT_KERNELS_SM90_WORK_ITEM_CUH_
