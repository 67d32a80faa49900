// SPDX-License-Identifier: Apache-2.0
//
// A token grid cut into boxes: tiles and buckets alike. Boxes start at multiples of their extent, so the last one along
// an axis may be shorter. Boxes and the tokens inside one are counted in raster order (frame, height, width); token ids
// are raster positions in the whole grid. Nothing is permuted in memory: the order of tiles is this arithmetic.
#ifndef VORTA_TRT_KERNELS_BOX_PARTITION_H_
#define VORTA_TRT_KERNELS_BOX_PARTITION_H_

#include <cstdint>

#include "cutlass/fast_math.h"

namespace vorta {

using cutlass::FastDivmod;

struct BoxPartition {
  int grid[3];                        // tokens
  int extent[3];                      // of a whole box, in tokens; at most the grid
  int boxes[3];                       // along each axis
  int row_stride, frame_stride;       // token ids from one row, one frame to the next
  bool ragged;                        // the last box along some axis is shorter
  FastDivmod tokens;                  // of a whole box
  FastDivmod plane_boxes, row_boxes;  // boxes of a frame layer, of a row
  FastDivmod plane_tokens[2][2];      // of a box that is whole (0) or last (1) along height and width: h * w
  FastDivmod row_tokens[2];           // of a box that is whole or last along width: w

  BoxPartition() = default;
  BoxPartition(const int32_t (&grid_)[3], const int32_t (&box)[3]) : ragged(false) {
    int last[3];
    for (int axis = 0; axis < 3; ++axis) {
      grid[axis] = grid_[axis];
      extent[axis] = box[axis] < grid[axis] ? box[axis] : grid[axis];
      boxes[axis] = (grid[axis] - 1) / extent[axis] + 1;
      last[axis] = grid[axis] - (boxes[axis] - 1) * extent[axis];
      ragged = ragged || last[axis] != extent[axis];
    }
    row_stride = grid[2];
    frame_stride = grid[1] * grid[2];
    tokens = FastDivmod(extent[0] * extent[1] * extent[2]);
    plane_boxes = FastDivmod(boxes[1] * boxes[2]);
    row_boxes = FastDivmod(boxes[2]);
    for (int w = 0; w < 2; ++w) {
      const int width = w == 0 ? extent[2] : last[2];
      row_tokens[w] = FastDivmod(width);
      for (int h = 0; h < 2; ++h) plane_tokens[h][w] = FastDivmod((h == 0 ? extent[1] : last[1]) * width);
    }
  }

  CUTLASS_HOST_DEVICE int count() const { return boxes[0] * boxes[1] * boxes[2]; }

  /// Splits a box index into its position along each axis.
  CUTLASS_HOST_DEVICE void split(int index, int (&position)[3]) const {
    int in_plane;
    plane_boxes(position[0], in_plane, index);
    row_boxes(position[1], position[2], in_plane);
  }

  /// Tokens along `axis` of the boxes at `position` on it.
  CUTLASS_HOST_DEVICE int extent_at(int axis, int position) const {
    const int left = grid[axis] - position * extent[axis];
    return left < extent[axis] ? left : extent[axis];
  }

  /// Tokens of the box at `position`.
  CUTLASS_HOST_DEVICE int size_at(const int (&position)[3]) const {
    if (!ragged) return tokens.divisor;
    return extent_at(0, position[0]) * extent_at(1, position[1]) * extent_at(2, position[2]);
  }

  /// Token id of the first token of the box at `position`.
  CUTLASS_HOST_DEVICE int first_token(const int (&position)[3]) const {
    return position[0] * extent[0] * frame_stride + position[1] * extent[1] * row_stride + position[2] * extent[2];
  }

  /// Token id of the token `inside` (raster order) of the box at `position`.
  CUTLASS_HOST_DEVICE int token(const int (&position)[3], int inside) const {
    int frame, row, column, in_plane;
    if (ragged) {
      const int h = is_last(1, position[1]), w = is_last(2, position[2]);
      plane_tokens[h][w](frame, in_plane, inside);
      row_tokens[w](row, column, in_plane);
    } else {
      plane_tokens[0][0](frame, in_plane, inside);
      row_tokens[0](row, column, in_plane);
    }
    return (position[0] * extent[0] + frame) * frame_stride + (position[1] * extent[1] + row) * row_stride +
           position[2] * extent[2] + column;
  }

 protected:
  CUTLASS_HOST_DEVICE bool is_last(int axis, int position) const { return position == boxes[axis] - 1; }
};

}  // namespace vorta

#endif  // VORTA_TRT_KERNELS_BOX_PARTITION_H_
