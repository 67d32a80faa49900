// SPDX-License-Identifier: Apache-2.0
//
// The sparsity pattern: which token stands in which query row and which key column of a thread block. The mainloop
// asks for token ids and counts, and knows no branch; the branches differ in this file alone.
//
// Every branch lists its video tokens in an order of its own, and text tokens after them:
//   Raster   token ids as they are                                            full branch, and text of the sliding one
//   Tiles    queries of a group of tiles that share a window (sliding_plan.h);
//            keys of the window, tile by tile                                 sliding branch
//   Coreset  the lists that the selection kernel left in the workspace        coreset branch
#ifndef VORTA_TRT_KERNELS_BLOCK_ITERATION_CUH_
#define VORTA_TRT_KERNELS_BLOCK_ITERATION_CUH_

#include "../sliding_plan.h"
#include "params.h"

namespace vorta::sm80 {

enum class TokenOrder { kRaster, kTiles, kCoreset };

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

/// The rows and columns of one thread block. Rows and columns are positions in the branch's order; -1 is no token.
class BlockIteration {
 public:
  __device__ BlockIteration(const RoutedAttentionParams& params, const SlidingPlan& plan, int block_m)
      : params_(params),
        text_length_(params.text_tokens == 0 ? 0 : min(max(params.text_length[blockIdx.z], 0), params.text_tokens)) {
    const int64_t head = int64_t{blockIdx.z} * params.heads + blockIdx.y;
    const QueryBlocks blocks(params, plan, block_m);
    const int block = blockIdx.x;
    route_ = params.routes[head];
    switch (route_) {
      case VORTA_SLIDING:
        // A block never straddles two groups, so all its rows see the same window. Text blocks see every key; they are
        // the longest and go first.
        if (block < blocks.sliding_text) {
          use_raster(params.video_tokens + block * block_m);
        } else if (block < blocks.sliding) {
          use_group(query_group_block(plan, block - blocks.sliding_text, 0, block_m));
        }
        break;
      case VORTA_CORESET:
        if (block < blocks.coreset) use_coreset(head, block * block_m);
        break;
      default:
        if (block < blocks.full) use_raster(block * block_m);
    }
  }

  /// Whether the block has rows at all: the grid is as large as the branch with the most blocks needs.
  __device__ bool has_rows() const { return first_row_ < end_row_; }

  /// Whether any row has something to attend with; blocks of padded text alone only write zeros.
  __device__ bool has_queries() const {
    return first_row_ < video_rows_ || params_.video_tokens + first_row_ - video_rows_ < first_padding();
  }

  __device__ int query_token(int row) const {
    const int position = first_row_ + row;
    if (position >= end_row_) return -1;
    if (position >= video_rows_) return params_.video_tokens + position - video_rows_;
    if (order_ == TokenOrder::kCoreset) return kept_queries_[position];
    if (order_ == TokenOrder::kTiles) return group_.token(params_.tiles, position);
    return position;
  }

  /// Padded text: neither attended to nor computed, its output is 0.
  __device__ bool is_padding(int token) const { return token >= first_padding(); }

  __device__ int key_count() const { return video_keys_ + text_length_; }
  __device__ int text_length() const { return text_length_; }

  /// Of the head.
  __device__ int route() const { return route_; }

  /// Whether rows are those of a group of tiles, and keys those of its window, not all of the branch.
  __device__ bool has_window() const { return order_ == TokenOrder::kTiles; }
  __device__ const QueryGroupBlock& group() const { return group_; }

  __device__ int key_token(int column) const {
    if (column >= key_count()) return -1;
    if (column >= video_keys_) return params_.video_tokens + column - video_keys_;
    if (order_ == TokenOrder::kCoreset) return kept_keys_[column];
    if (order_ == TokenOrder::kTiles) return window_token(column);
    return column;
  }

  /// Dropped tokens of the bucket whose centre stands in `row`: they take that row's output. Empty for other rows.
  struct TokenList {
    const int32_t* tokens;
    int count;
  };
  __device__ TokenList copies_of(int row) const {
    const int position = first_row_ + row;
    if (order_ != TokenOrder::kCoreset || position >= video_rows_) return {nullptr, 0};
    const KeptRow kept = params_.buckets.kept_row(position);
    return {dropped_queries_ + kept.first_dropped, kept.slot == 0 ? kept.dropped : 0};
  }

 private:
  __device__ int first_padding() const { return params_.video_tokens + text_length_; }

  __device__ void use_raster(int first_row) {
    order_ = TokenOrder::kRaster;
    first_row_ = first_row;
    end_row_ = params_.video_tokens + params_.text_tokens;
    video_rows_ = video_keys_ = params_.video_tokens;
  }

  /// Rows are positions inside one group of tiles.
  __device__ void use_group(const QueryGroupBlock& group) {
    order_ = TokenOrder::kTiles;
    group_ = group;
    end_row_ = video_rows_ = group.rows;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) window_start_[axis] = group.window_origin[axis] / params_.tiles.extent[axis];
    const int (&window)[3] = params_.window;
    video_keys_ = window[0] * window[1] * window[2] * params_.tiles.tokens.divisor;
  }

  __device__ void use_coreset(int64_t head, int first_row) {
    order_ = TokenOrder::kCoreset;
    first_row_ = first_row;
    end_row_ = params_.kept_tokens + params_.text_tokens;
    video_rows_ = video_keys_ = params_.kept_tokens;
    kept_queries_ = params_.kept_queries + head * params_.kept_tokens;
    kept_keys_ = params_.kept_keys + head * params_.kept_tokens;
    dropped_queries_ = params_.dropped_queries + head * params_.buckets.dropped_tokens;
  }

  /// Token id of a key column of the sliding branch: tile of the window, then token of the tile.
  __device__ int window_token(int column) const {
    int tile, inside, plane, in_plane, row, in_row;
    params_.tiles.tokens(tile, inside, column);
    params_.tiles_per_window_plane(plane, in_plane, tile);
    params_.tiles_per_window_row(row, in_row, in_plane);
    const int position[3] = {window_start_[0] + plane, window_start_[1] + row, window_start_[2] + in_row};
    return params_.tiles.token(position, inside);
  }

  const RoutedAttentionParams& params_;
  int route_;
  TokenOrder order_ = TokenOrder::kRaster;
  int text_length_;     // valid text tokens
  int first_row_ = 0;   // position of row 0
  int end_row_ = 0;     // positions from here on are not rows
  int video_rows_ = 0;  // positions from here on are text
  int video_keys_ = 0;  // columns from here on are text
  QueryGroupBlock group_{};
  int window_start_[3] = {0, 0, 0};  // first tile of the window
  const int32_t* kept_queries_ = nullptr;
  const int32_t* kept_keys_ = nullptr;
  const int32_t* dropped_queries_ = nullptr;
};

}  // namespace vorta::sm80

#endif  // VORTA_TRT_KERNELS_BLOCK_ITERATION_CUH_
