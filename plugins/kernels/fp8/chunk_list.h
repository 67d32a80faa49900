// SPDX-License-Identifier: Apache-2.0
//
// The chunks that a query row sees, in order: the video chunks that its branch attends to, then the text.
#ifndef VORTA_TRT_KERNELS_FP8_CHUNK_LIST_H_
#define VORTA_TRT_KERNELS_FP8_CHUNK_LIST_H_

#include "images.h"

namespace vorta::fp8 {

class ChunkList {
 public:
  /// All video chunks of a head, `video_chunks`, then `text_chunks` that hold valid text.
  CUTLASS_HOST_DEVICE ChunkList(const RoutedAttentionParams& problem, int video_chunks, int text_chunks)
      : text_(video_chunks), text_left_(text_chunks), empty_(video_chunks + chunks_of(problem.text_tokens)) {
    left_ = video_chunks;
  }

  /// The chunks of the window that starts at token `origin` of each axis, a multiple of the tile's size; then the text.
  CUTLASS_HOST_DEVICE ChunkList(const RoutedAttentionParams& problem, const Images& images, const int (&origin)[3],
                                int text_chunks)
      : ChunkList(problem, images.tiles.total, text_chunks) {
    left_ = 0;
    tiles_ = &images.tiles;
    window_tiles_ = problem.window[2];
    rows_ = rows_left_ = problem.window[1];
    planes_left_ = problem.window[0];
    for (int axis = 0; axis < 3; ++axis) tile_[axis] = origin[axis] / images.tiles.extent[axis];
  }

  /// The next chunk of the head; after the last one, the chunk without keys.
  CUTLASS_HOST_DEVICE int next() {
    if (left_ == 0 && !next_run()) return empty_;
    --left_;
    return chunk_++;
  }

 private:
  CUTLASS_HOST_DEVICE bool next_run() {
    if (planes_left_ > 0) {
      const int height = tile_[1] + rows_ - rows_left_;
      chunk_ = tiles_->first(tile_[0], height, tile_[2]);
      left_ = tiles_->of_run(tile_[0], height, tile_[2], window_tiles_);
      if (--rows_left_ == 0) {
        rows_left_ = rows_;
        --planes_left_;
        ++tile_[0];
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
  const TileChunks* tiles_ = nullptr;
  int tile_[3] = {};                                                   // of the next run
  int planes_left_ = 0, rows_ = 0, rows_left_ = 0, window_tiles_ = 0;  // of the window, in tiles
};

}  // namespace vorta::fp8

#endif  // VORTA_TRT_KERNELS_FP8_CHUNK_LIST_H_
