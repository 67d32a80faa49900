// SPDX-License-Identifier: Apache-2.0
//
// The query rows of the sliding branch, planned on the host from the geometry alone.
//
// The window's centre is clamped, so the tiles at a border share the window of their inner neighbour. Along an axis the
// tiles fall into groups of equal windows: one group at either end and single tiles between them. A query group is the
// product of one group of each axis: a box of tokens that all see the same keys, which are a box of tokens, too.
// Cutting groups instead of tiles into query blocks wastes fewer rows (5 % instead of 7 %, and 3 % instead of 19 %, at
// the two published sizes).
//
// Where the tiles do not divide the grid, the last tile along an axis is shorter. It is in the last group and in that
// group's window and in no other: along an axis windows have at most two lengths.
#ifndef VORTA_TRT_KERNELS_SLIDING_PLAN_H_
#define VORTA_TRT_KERNELS_SLIDING_PLAN_H_

#include "params.h"

namespace vorta {

/// Groups along one axis that are alike: `count` of them, `step` tokens apart, each of `extent` tokens.
struct AxisGroups {
  int count;
  int origin, step, extent;                       // tokens
  int window_origin, window_step, window_extent;  // the window's tokens
};

struct SlidingPlan {
  static constexpr int kMaxClasses = 27;

  AxisGroups axis[3][3];
  int kinds[3];                     // of groups along an axis, 1 to 3: the first, the last, those between
  int classes;                      // combinations of them
  int cluster;                      // query blocks that go over their keys together: an item
  int first_item[kMaxClasses + 1];  // items of a head before each class
};

/// A block of query rows: `rows` tokens, which may be none, in raster order from `first_row` on, of the box at `origin`
/// that is `height` rows of `width` tokens in every frame. They see the box of `window_extent` tokens at
/// `window_origin`, which lies inside the grid.
struct QueryGroupBlock {
  int first_row, rows;
  int origin[3], height, width;
  int window_origin[3], window_extent[3];
  bool shared_window;  // with the other blocks of the item

  CUTLASS_HOST_DEVICE int token(const BoxPartition& tiles, int row) const {
    const int plane = height * width, position = first_row + row;
    const int frame = position / plane, in_plane = position - frame * plane;
    const int line = in_plane / width, column = in_plane - line * width;
    return (origin[0] + frame) * tiles.frame_stride + (origin[1] + line) * tiles.row_stride + origin[2] + column;
  }
};

/// The `rank`-th query block, of up to `rows` rows, of a head's `item`-th item. The items of a class are first those
/// whose blocks come from one group; what is left over of each group then shares an item with what others have left
/// over.
CUTLASS_HOST_DEVICE QueryGroupBlock query_group_block(const SlidingPlan& plan, int item, int rank, int rows) {
  int index = 0;
  while (item >= plan.first_item[index + 1]) ++index;
  item -= plan.first_item[index];
  const AxisGroups& frames = plan.axis[0][index / (plan.kinds[1] * plan.kinds[2])];
  const AxisGroups& height = plan.axis[1][index / plan.kinds[2] % plan.kinds[1]];
  const AxisGroups& width = plan.axis[2][index % plan.kinds[2]];
  const int tokens = frames.extent * height.extent * width.extent;
  const int groups = frames.count * height.count * width.count, blocks = (tokens + rows - 1) / rows;
  const int whole = blocks / plan.cluster, left = blocks - whole * plan.cluster;  // items, blocks of a group
  int group, block;
  bool shared = item < groups * whole, exists = true;
  if (shared) {
    group = item / whole;
    block = (item - group * whole) * plan.cluster + rank;
  } else {
    const int position = (item - groups * whole) * plan.cluster + rank;
    exists = position < groups * left;
    group = exists ? position / left : groups - 1;
    block = whole * plan.cluster + (exists ? position - group * left : 0);
  }
  const int f = group / (height.count * width.count), h = group / width.count % height.count, w = group % width.count;
  const int first_row = block * rows, rest = exists ? tokens - first_row : 0;
  return {first_row,
          rest < rows ? rest : rows,
          {frames.origin + f * frames.step, height.origin + h * height.step, width.origin + w * width.step},
          height.extent,
          width.extent,
          {frames.window_origin + f * frames.window_step, height.window_origin + h * height.window_step,
           width.window_origin + w * width.window_step},
          {frames.window_extent, height.window_extent, width.window_extent},
          shared};
}

/// `window`: in tiles, at most the grid's; `rows`: of a block; `cluster`: blocks of an item.
SlidingPlan make_sliding_plan(const BoxPartition& tiles, const int (&window)[3], int rows, int cluster);

}  // namespace vorta

#endif  // VORTA_TRT_KERNELS_SLIDING_PLAN_H_
