// SPDX-License-Identifier: Apache-2.0
//
// A token grid cut into equal boxes: tiles and buckets alike. Boxes and the tokens inside one are counted in raster
// order (frame, height, width); token ids are raster positions in the whole grid. Nothing is permuted in memory: the
// order of tiles is this arithmetic.
#ifndef VORTA_TRT_KERNELS_BOX_PARTITION_H_
#define VORTA_TRT_KERNELS_BOX_PARTITION_H_

#include <cstdint>

#include "cutlass/fast_math.h"

namespace vorta {

using cutlass::FastDivmod;

struct BoxPartition {
  int extent[3];                                // of a box, in tokens
  int boxes[3];                                 // along each axis
  int row_stride, frame_stride;                 // token ids from one row, one frame to the next
  FastDivmod tokens, plane_tokens, row_tokens;  // of a box: t*h*w, h*w, w
  FastDivmod plane_boxes, row_boxes;            // boxes of a frame layer, of a row

  BoxPartition() = default;
  BoxPartition(const int32_t (&grid)[3], const int32_t (&box)[3])
      : extent{box[0], box[1], box[2]},
        boxes{grid[0] / box[0], grid[1] / box[1], grid[2] / box[2]},
        row_stride(grid[2]),
        frame_stride(grid[1] * grid[2]),
        tokens(box[0] * box[1] * box[2]),
        plane_tokens(box[1] * box[2]),
        row_tokens(box[2]),
        plane_boxes(boxes[1] * boxes[2]),
        row_boxes(boxes[2]) {}

  CUTLASS_HOST_DEVICE int count() const { return boxes[0] * boxes[1] * boxes[2]; }

  /// Splits a box index into its position along each axis.
  CUTLASS_HOST_DEVICE void split(int index, int (&position)[3]) const {
    int in_plane;
    plane_boxes(position[0], in_plane, index);
    row_boxes(position[1], position[2], in_plane);
  }

  /// Token id of the token `inside` (raster order) of the box at `position`.
  CUTLASS_HOST_DEVICE int token(const int (&position)[3], int inside) const {
    int frame, row, column, in_plane;
    plane_tokens(frame, in_plane, inside);
    row_tokens(row, column, in_plane);
    return (position[0] * extent[0] + frame) * frame_stride + (position[1] * extent[1] + row) * row_stride +
           position[2] * extent[2] + column;
  }
};

}  // namespace vorta

#endif  // VORTA_TRT_KERNELS_BOX_PARTITION_H_
