// SPDX-License-Identifier: Apache-2.0
//
// Keys in chunks of 32, the depth of an 8-bit matrix product: how many a head has, and where those of a tile stand.
#ifndef VORTA_TRT_KERNELS_FP8_CHUNKS_H_
#define VORTA_TRT_KERNELS_FP8_CHUNKS_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../bucket_partition.h"
#include "vorta_trt/routed_attention.h"

namespace vorta::fp8 {

inline constexpr int kChunk = 32;  // keys
inline constexpr int kChunkNoteBytes = 16;
inline constexpr int kStatisticsRows = 4;  // see images.h

CUTLASS_HOST_DEVICE constexpr int chunks_of(int keys) { return (keys + kChunk - 1) / kChunk; }

/// The chunks of a head whose tokens are cut tile by tile, tiles in raster order. Every tile ends in a chunk of its
/// own. Indices say whether a tile is whole (0) or last (1) along frames, height and width; only last ones can be
/// shorter.
struct TileChunks {
  int boxes[3], extent[3];  // of the tiles
  int tile[2][2][2];        // chunks of a tile,
  int row[2][2];            // of a row of tiles,
  int plane[2];             // of a layer of tiles,
  int total;                // of a head

  TileChunks() = default;
  explicit TileChunks(const BoxPartition& tiles) {
    for (int axis = 0; axis < 3; ++axis) boxes[axis] = tiles.boxes[axis], extent[axis] = tiles.extent[axis];
    const auto kind_extent = [&](int axis, int kind) {
      return tiles.extent_at(axis, kind == 0 ? 0 : tiles.boxes[axis] - 1);
    };
    for (int f = 0; f < 2; ++f) {
      for (int h = 0; h < 2; ++h) {
        for (int w = 0; w < 2; ++w) {
          tile[f][h][w] = chunks_of(kind_extent(0, f) * kind_extent(1, h) * kind_extent(2, w));
        }
        row[f][h] = (boxes[2] - 1) * tile[f][h][0] + tile[f][h][1];
      }
      plane[f] = (boxes[1] - 1) * row[f][0] + row[f][1];
    }
    total = (boxes[0] - 1) * plane[0] + plane[1];
  }

  /// The tile of the `chunk`-th chunk; returns the number of the chunk inside it.
  CUTLASS_HOST_DEVICE int locate(int chunk, int (&position)[3]) const {
    position[0] = smaller(chunk / plane[0], boxes[0] - 1);
    const int f = is_last(0, position[0]);
    chunk -= position[0] * plane[0];
    position[1] = smaller(chunk / row[f][0], boxes[1] - 1);
    const int h = is_last(1, position[1]);
    chunk -= position[1] * row[f][0];
    position[2] = smaller(chunk / tile[f][h][0], boxes[2] - 1);
    return chunk - position[2] * tile[f][h][0];
  }

  /// First chunk of the tile at `position`.
  CUTLASS_HOST_DEVICE int first(int frame, int height, int width) const {
    const int f = is_last(0, frame), h = is_last(1, height);
    return frame * plane[0] + height * row[f][0] + width * tile[f][h][0];
  }

  /// Chunks of `count` tiles of one row, from the tile at `position` on.
  CUTLASS_HOST_DEVICE int of_run(int frame, int height, int width, int count) const {
    const int f = is_last(0, frame), h = is_last(1, height), w = is_last(2, width + count - 1);
    return (count - w) * tile[f][h][0] + (w != 0 ? tile[f][h][1] : 0);
  }

  /// Chunks of the window of `window` tiles whose first tile is at `position`.
  CUTLASS_HOST_DEVICE int of_window(const int (&position)[3], const int (&window)[3]) const {
    const int f = is_last(0, position[0] + window[0] - 1), h = is_last(1, position[1] + window[1] - 1);
    const auto rows = [&](int frame) {
      return (window[1] - h) * of_run(frame, 0, position[2], window[2]) +
             (h != 0 ? of_run(frame, boxes[1] - 1, position[2], window[2]) : 0);
    };
    return (window[0] - f) * rows(0) + (f != 0 ? rows(boxes[0] - 1) : 0);
  }

 private:
  CUTLASS_HOST_DEVICE static int smaller(int a, int b) { return a < b ? a : b; }
  CUTLASS_HOST_DEVICE int is_last(int axis, int position) const { return position == boxes[axis] - 1; }
};

/// Chunks reserved for a head: those of its longest route, the text, and one of no keys.
inline int64_t chunks_per_head(const vorta_routed_attention_problem& problem) {
  const int video = problem.grid[0] * problem.grid[1] * problem.grid[2];
  const int kept = BucketPartition(problem.grid, problem.bucket, problem.keep).kept_tokens;
  const int sliding = TileChunks(BoxPartition(problem.grid, problem.tile)).total;
  return int64_t{std::max({chunks_of(video), chunks_of(kept), sliding})} + chunks_of(problem.text_tokens) + 1;
}

}  // namespace vorta::fp8

#endif  // VORTA_TRT_KERNELS_FP8_CHUNKS_H_
