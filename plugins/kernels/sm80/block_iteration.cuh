// SPDX-License-Identifier: Apache-2.0
//
// The sparsity pattern: which token stands in which query row and which key column of a thread block. The mainloop
// asks for token ids and counts, and knows no branch; the branches differ in this file alone.
//
// Every branch lists its video tokens in an order of its own, and text tokens after them:
//   Raster   token ids as they are                                            full branch, and text of the sliding one
//   Window   queries of a group of tiles that share a window (sliding_plan.h);
//            keys of the window, tile by tile, or in raster order where tiles
//            differ in size                                                   sliding branch
//   Coreset  the lists that the selection kernel left in the workspace        coreset branch
#ifndef VORTA_TRT_KERNELS_BLOCK_ITERATION_CUH_
#define VORTA_TRT_KERNELS_BLOCK_ITERATION_CUH_

#include "../sliding_plan.h"
#include "block_shape.h"
#include "cute/arch/copy_sm80.hpp"
#include "params.h"

namespace vorta::sm80 {

enum class TokenOrder { kRaster, kWindow, kCoreset };

CUTLASS_HOST_DEVICE int ceil_div(int value, int divisor) { return (value + divisor - 1) / divisor; }

/// Query blocks of block_m rows that a head of each branch needs.
struct QueryBlocks {
  int full, coreset;
  int sliding_text, sliding;

  CUTLASS_HOST_DEVICE QueryBlocks(const RoutedAttentionParams& params, const SlidingPlan& plan, int block_m)
      : full(ceil_div(params.video_tokens + params.text_tokens, block_m)),
        coreset(ceil_div(params.kept_tokens + params.text_tokens, block_m)),
        sliding_text(ceil_div(params.text_tokens, block_m)),
        sliding(sliding_text + plan.first_item[plan.classes]) {}
};

/// Which token stands in which key column of a thread block.
struct KeyColumns {
  TokenOrder order;
  int video_keys;                       // columns from here on are text
  int key_count;                        // columns from here on are nothing
  int window_first[3];                  // of the window: tile, or token where tiles differ in size
  FastDivmod window_plane, window_row;  // of the window, in the same unit
  int64_t first_kept;                   // of the head, in the lists of all heads

  /// Writes the token of a column to shared memory, -1 for none: at once, or, from the list of a coreset, with
  /// cp.async. Entries that nobody wrote, because routes changed under the call, may be no tokens.
  __device__ void look_up(const RoutedAttentionParams& params, int column, int* result) const {
    if (column < video_keys && order == TokenOrder::kCoreset) {
      cute::SM80_CP_ASYNC_CACHEALWAYS<int>::copy(params.kept_keys[first_kept + column], *result);
    } else {
      *result = token(params, column);
    }
  }

 private:
  __device__ int token(const RoutedAttentionParams& params, int column) const {
    if (column >= key_count) return -1;
    if (column >= video_keys) return params.video_tokens + column - video_keys;
    return order == TokenOrder::kWindow ? window_token(params.tiles, column) : column;
  }

  __device__ int window_token(const BoxPartition& tiles, int column) const {
    int tile = column, inside = 0, plane, in_plane, row, in_row;
    if (!tiles.ragged) tiles.tokens(tile, inside, column);
    window_plane(plane, in_plane, tile);
    window_row(row, in_row, in_plane);
    const int position[3] = {window_first[0] + plane, window_first[1] + row, window_first[2] + in_row};
    if (!tiles.ragged) return tiles.token(position, inside);
    return position[0] * tiles.frame_stride + position[1] * tiles.row_stride + position[2];
  }
};

/// The rows and columns of one thread block. Rows and columns are positions in the branch's order; -1 is no token. It
/// lies in shared memory, because the mainloop has no registers to spare, and one thread fills it in: `routes` and
/// `text_length` are read once.
class alignas(kIterationAlignment) BlockIteration {
 public:
  __device__ void start(const RoutedAttentionParams& params, const SlidingPlan& plan, int block_m) {
    const int64_t head = int64_t{blockIdx.z} * params.heads + blockIdx.y;
    const QueryBlocks blocks(params, plan, block_m);
    const int block = blockIdx.x;
    text_length_ = params.text_tokens == 0 ? 0 : min(max(params.text_length[blockIdx.z], 0), params.text_tokens);
    first_row_ = end_row_ = video_rows_ = columns_.video_keys = 0;
    zero_ = 0;
    columns_.order = TokenOrder::kRaster;
    route_ = params.routes == nullptr ? VORTA_FULL : params.routes[head];
    switch (route_) {
      case VORTA_SLIDING:
        // A block never straddles two groups, so all its rows see the same window. Text blocks see every key; they are
        // the longest and go first.
        if (block < blocks.sliding_text) {
          use_raster(params, params.video_tokens + block * block_m);
        } else if (block < blocks.sliding) {
          use_group(params, query_group_block(plan, block - blocks.sliding_text, 0, block_m));
        }
        break;
      case VORTA_CORESET:
        if (block < blocks.coreset) use_coreset(params, head, block * block_m);
        break;
      default:
        if (block < blocks.full) use_raster(params, block * block_m);
    }
    columns_.key_count = columns_.video_keys + text_length_;
  }

  /// Whether the block has rows at all: the grid is as large as the branch with the most blocks needs.
  __device__ bool has_rows() const { return first_row_ < end_row_; }

  /// Whether any row has something to attend with; blocks of padded text alone only write zeros.
  __device__ bool has_queries() const { return first_row_ < video_rows_ + text_length_; }

  __device__ int query_token(const RoutedAttentionParams& params, int row) const {
    const int position = first_row_ + row;
    if (position >= end_row_) return -1;
    if (position >= video_rows_) return params.video_tokens + position - video_rows_;
    if (columns_.order == TokenOrder::kCoreset) {
      return listed_token(params, params.kept_queries + columns_.first_kept + position);
    }
    if (columns_.order == TokenOrder::kWindow) return group_.token(params.tiles, position);
    return position;
  }

  /// Whether a token is padded text, which is neither attended to nor computed; its output is 0.
  __device__ bool is_padding(const RoutedAttentionParams& params, int token) const {
    return token >= params.video_tokens + text_length_;
  }

  __device__ const KeyColumns& columns() const { return columns_; }
  __device__ int text_length() const { return text_length_; }

  /// The route of the head.
  __device__ int route() const { return route_; }

  /// Whether the rows are those of a group of tiles and the keys those of its window; otherwise both are the branch's.
  __device__ bool has_window() const { return columns_.order == TokenOrder::kWindow; }
  __device__ const QueryGroupBlock& group() const { return group_; }

  /// threadIdx.x in a way that the compiler cannot see through: what follows from it is computed anew where it is
  /// needed and takes no registers meanwhile. Without this the instances of 64 and 128 spill.
  __device__ unsigned fresh_thread() const { return threadIdx.x + *static_cast<const volatile unsigned*>(&zero_); }

  /// The number of key columns, hidden from the compiler in the same way.
  __device__ int fresh_key_count() const { return *static_cast<const volatile int*>(&columns_.key_count); }

  /// Dropped tokens of the bucket whose centre stands in `row`: they take that row's output. None for other rows.
  struct Copies {
    const int32_t* entries;
    int count;
  };
  __device__ Copies copies_of(const RoutedAttentionParams& params, int row) const {
    const int position = first_row_ + row;
    if (columns_.order != TokenOrder::kCoreset || position >= video_rows_) return {nullptr, 0};
    const KeptRow kept = params.buckets.kept_row(position);
    return {params.dropped_queries + first_dropped_ + kept.first_dropped, kept.slot == 0 ? kept.dropped : 0};
  }

 private:
  __device__ void use_raster(const RoutedAttentionParams& params, int first_row) {
    first_row_ = first_row;
    end_row_ = params.video_tokens + params.text_tokens;
    video_rows_ = params.video_tokens;
    columns_.video_keys = params.video_keys;
  }

  /// Rows are positions inside one group of tiles.
  __device__ void use_group(const RoutedAttentionParams& params, const QueryGroupBlock& group) {
    columns_.order = TokenOrder::kWindow;
    group_ = group;
    end_row_ = video_rows_ = group.rows;
    const int (&extent)[3] = group.window_extent;
    columns_.video_keys = extent[0] * extent[1] * extent[2];
    const BoxPartition& tiles = params.tiles;
    const int h = group.window_origin[1] + extent[1] == tiles.grid[1],
              w = group.window_origin[2] + extent[2] == tiles.grid[2];
    columns_.window_plane = params.window_plane[h][w];
    columns_.window_row = params.window_row[w];
    for (int axis = 0; axis < 3; ++axis) {
      columns_.window_first[axis] = group.window_origin[axis] / (tiles.ragged ? 1 : tiles.extent[axis]);
    }
  }

  __device__ void use_coreset(const RoutedAttentionParams& params, int64_t head, int first_row) {
    columns_.order = TokenOrder::kCoreset;
    first_row_ = first_row;
    end_row_ = params.kept_tokens + params.text_tokens;
    video_rows_ = columns_.video_keys = params.kept_tokens;
    columns_.first_kept = head * params.kept_tokens;
    first_dropped_ = head * params.buckets.dropped_tokens;
  }

  KeyColumns columns_;
  int route_;
  int text_length_;  // valid text tokens
  int first_row_;    // position of row 0
  int end_row_;      // positions from here on are not rows
  int video_rows_;   // positions from here on are text
  QueryGroupBlock group_;
  unsigned zero_;
  int64_t first_dropped_;  // of the head, in the lists of all heads
};

static_assert(sizeof(BlockIteration) == kIterationBytes, "the table of block shapes must count all of it");

}  // namespace vorta::sm80

#endif  // VORTA_TRT_KERNELS_BLOCK_ITERATION_CUH_
