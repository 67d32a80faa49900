// SPDX-License-Identifier: Apache-2.0
//
// The sparsity pattern: which token stands in which query row and which key column of a thread block. The mainloop
// asks for token ids and counts, and knows no branch; the branches differ in this file alone.
//
// Every branch lists its video tokens in an order of its own, and text tokens after them:
//   Raster   token ids as they are                                            full branch, and text of the sliding one
//   Tiles    queries tile by tile; keys of the window, tile by tile           sliding branch
//   Coreset  the lists that the selection kernel left in the workspace        coreset branch
#ifndef VORTA_TRT_KERNELS_BLOCK_ITERATION_CUH_
#define VORTA_TRT_KERNELS_BLOCK_ITERATION_CUH_

#include "params.h"

namespace vorta {

enum class TokenOrder { kRaster, kTiles, kCoreset };

CUTLASS_HOST_DEVICE int ceil_div(int value, int divisor) { return (value + divisor - 1) / divisor; }

/// Query blocks of block_m rows that a head of each branch needs.
struct QueryBlocks {
  int full, coreset;
  int sliding_text, sliding_per_tile, sliding;

  CUTLASS_HOST_DEVICE QueryBlocks(const RoutedAttentionParams& params, int block_m)
      : full(ceil_div(params.video_tokens + params.text_tokens, block_m)),
        coreset(ceil_div(params.kept_tokens + params.text_tokens, block_m)),
        sliding_text(ceil_div(params.text_tokens, block_m)),
        sliding_per_tile(ceil_div(params.tiles.tokens.divisor, block_m)),
        sliding(sliding_text + params.tiles.count() * sliding_per_tile) {}
};

/// Where a thread block stands in its branch's order; "position" counts in that order. All threads share one in shared
/// memory: in registers it would cost the mainloop eight of them, and the largest instances would spill.
struct BlockPattern {
  TokenOrder order = TokenOrder::kRaster;
  int text_length = 0;  // valid text tokens
  int first_row = 0;    // position of row 0
  int end_row = 0;      // positions from here on are not rows
  int video_rows = 0;   // positions from here on are text
  int video_keys = 0;   // columns from here on are text
  int query_tile[3] = {0, 0, 0};
  int window_start[3] = {0, 0, 0};  // first tile of the window

  BlockPattern() = default;

  __device__ BlockPattern(const RoutedAttentionParams& params, int block_m) {
    if (params.text_tokens > 0) text_length = min(max(params.text_length[blockIdx.z], 0), params.text_tokens);
    const QueryBlocks blocks(params, block_m);
    const int block = blockIdx.x;
    switch (params.routes[int64_t{blockIdx.z} * params.heads + blockIdx.y]) {
      case VORTA_SLIDING:
        // A block never straddles two tiles, so all its rows see the same window. Text blocks see every key; they are
        // the longest and go first.
        if (block < blocks.sliding_text) {
          use_raster(params, params.video_tokens + block * block_m);
        } else if (block < blocks.sliding) {
          use_tile(params, block - blocks.sliding_text, blocks.sliding_per_tile, block_m);
        }
        break;
      case VORTA_CORESET:
        if (block < blocks.coreset) use_coreset(params, block * block_m);
        break;
      default:
        if (block < blocks.full) use_raster(params, block * block_m);
    }
  }

 private:
  __device__ void use_raster(const RoutedAttentionParams& params, int row) {
    order = TokenOrder::kRaster;
    first_row = row;
    end_row = params.video_tokens + params.text_tokens;
    video_rows = video_keys = params.video_tokens;
  }

  /// Rows are positions inside one tile.
  __device__ void use_tile(const RoutedAttentionParams& params, int block, int blocks_per_tile, int block_m) {
    order = TokenOrder::kTiles;
    const int tile = block / blocks_per_tile;
    first_row = (block - tile * blocks_per_tile) * block_m;
    end_row = video_rows = params.tiles.tokens.divisor;
    params.tiles.split(tile, query_tile);
    const int (&window)[3] = params.window;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
      // The window's centre is the query's tile, clamped so that the window stays inside the grid.
      window_start[axis] = min(max(query_tile[axis] - window[axis] / 2, 0), params.tiles.boxes[axis] - window[axis]);
    }
    video_keys = window[0] * window[1] * window[2] * params.tiles.tokens.divisor;
  }

  __device__ void use_coreset(const RoutedAttentionParams& params, int row) {
    order = TokenOrder::kCoreset;
    first_row = row;
    end_row = params.kept_tokens + params.text_tokens;
    video_rows = video_keys = params.kept_tokens;
  }
};

/// The rows and columns of one thread block as token ids; -1 is no token.
class BlockIteration {
 public:
  __device__ BlockIteration(const RoutedAttentionParams& params, const BlockPattern& pattern)
      : params_(params), pattern_(pattern) {}

  /// Whether the block has rows at all: the grid is as large as the branch with the most blocks needs.
  __device__ bool has_rows() const { return pattern_.first_row < pattern_.end_row; }

  /// Whether any row has something to attend with; blocks of padded text alone only write zeros.
  __device__ bool has_queries() const {
    return pattern_.first_row < pattern_.video_rows ||
           params_.video_tokens + pattern_.first_row - pattern_.video_rows < first_padding();
  }

  __device__ int query_token(int row) const {
    const int position = pattern_.first_row + row;
    if (position >= pattern_.end_row) return -1;
    if (position >= pattern_.video_rows) return params_.video_tokens + position - pattern_.video_rows;
    if (pattern_.order == TokenOrder::kCoreset) return params_.kept_queries[head() * params_.kept_tokens + position];
    if (pattern_.order == TokenOrder::kTiles) return params_.tiles.token(pattern_.query_tile, position);
    return position;
  }

  /// Padded text: neither attended to nor computed, its output is 0.
  __device__ bool is_padding(int token) const { return token >= first_padding(); }

  __device__ int key_count() const { return pattern_.video_keys + pattern_.text_length; }

  __device__ int key_token(int column) const {
    if (column >= key_count()) return -1;
    if (column >= pattern_.video_keys) return params_.video_tokens + column - pattern_.video_keys;
    if (pattern_.order == TokenOrder::kCoreset) return params_.kept_keys[head() * params_.kept_tokens + column];
    if (pattern_.order == TokenOrder::kTiles) return window_token(column);
    return column;
  }

  /// Dropped tokens of the bucket whose centre stands in `row`: they take that row's output. Empty for other rows.
  struct TokenList {
    const int32_t* tokens;
    int count;
  };
  __device__ TokenList copies_of(int row) const {
    const int position = pattern_.first_row + row;
    if (pattern_.order != TokenOrder::kCoreset || position >= pattern_.video_rows) return {nullptr, 0};
    int bucket, slot;
    params_.keep(bucket, slot, position);
    if (slot != 0) return {nullptr, 0};
    const int dropped = params_.buckets.tokens.divisor - params_.keep.divisor;  // of a bucket
    const int64_t first = head() * (params_.video_tokens - params_.kept_tokens) + int64_t{bucket} * dropped;
    return {params_.dropped_queries + first, dropped};
  }

 private:
  /// Row of the workspace's lists. Cheaper to compute again than to keep pointers in registers through the mainloop.
  __device__ int64_t head() const { return int64_t{blockIdx.z} * params_.heads + blockIdx.y; }

  __device__ int first_padding() const { return params_.video_tokens + pattern_.text_length; }

  /// Token id of a key column of the sliding branch: tile of the window, then token of the tile.
  __device__ int window_token(int column) const {
    int tile, inside, plane, in_plane, row, in_row;
    params_.tiles.tokens(tile, inside, column);
    params_.tiles_per_window_plane(plane, in_plane, tile);
    params_.tiles_per_window_row(row, in_row, in_plane);
    const int position[3] = {pattern_.window_start[0] + plane, pattern_.window_start[1] + row,
                             pattern_.window_start[2] + in_row};
    return params_.tiles.token(position, inside);
  }

  const RoutedAttentionParams& params_;
  const BlockPattern& pattern_;
};

}  // namespace vorta

#endif  // VORTA_TRT_KERNELS_BLOCK_ITERATION_CUH_
