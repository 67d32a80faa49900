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

/// Groups that are alike along every axis.
struct GroupClass {
  const AxisGroups &frames, &height, &width;

  CUTLASS_HOST_DEVICE int groups() const { return frames.count * height.count * width.count; }
  CUTLASS_HOST_DEVICE int tokens() const { return frames.extent * height.extent * width.extent; }  // of a group
};

struct SlidingPlan {
  static constexpr int kMaxClasses = 27;

  AxisGroups axis[3][3];
  int kinds[3];                     // of groups along an axis, 1 to 3: the first, the last, those between
  int classes;                      // combinations of them
  int8_t order[kMaxClasses];        // of the classes: those with windows of one shape stand together, the largest first
  int cluster;                      // query blocks that go over their keys together: an item
  int first_item[kMaxClasses + 1];  // items of a head, all blocks of one group, before each class in this order
  int items;                        // of a head; behind those come the ones of blocks that are left over

  CUTLASS_HOST_DEVICE GroupClass class_at(int place) const {
    const int index = order[place], plane = index / kinds[2];
    return {axis[0][plane / kinds[1]], axis[1][plane % kinds[1]], axis[2][index % kinds[2]]};
  }

  /// The shape of the windows of a class: 4 f + 2 h + w, each 1 if they are shorter along the axis.
  CUTLASS_HOST_DEVICE int shape_at(int place) const {
    const GroupClass of = class_at(place);
    return 4 * (of.frames.window_extent != axis[0][0].window_extent) +
           2 * (of.height.window_extent != axis[1][0].window_extent) +
           (of.width.window_extent != axis[2][0].window_extent);
  }

  /// Whether the windows of the next class have another shape, or there is none.
  CUTLASS_HOST_DEVICE bool ends_shape(int place) const {
    return place + 1 >= classes || shape_at(place + 1) != shape_at(place);
  }
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

/// The `rank`-th query block, of up to `rows` rows, of a head's `item`-th item. First come items whose blocks are of
/// one group. What is left over of a group then shares an item with what others have left over, whose windows have the
/// same shape and so equally many blocks of keys.
CUTLASS_HOST_DEVICE QueryGroupBlock query_group_block(const SlidingPlan& plan, int item, int rank, int rows) {
  const int cluster = plan.cluster, whole_items = plan.first_item[plan.classes];
  const auto blocks_at = [&](int place) { return (plan.class_at(place).tokens() + rows - 1) / rows; };
  const bool shared = item < whole_items;
  bool exists = true;
  int place = 0, group, block;
  if (shared) {
    while (item >= plan.first_item[place + 1]) ++place;
    item -= plan.first_item[place];
    const int whole = blocks_at(place) / cluster;  // items of a group
    group = item / whole;
    block = (item - group * whole) * cluster + rank;
  } else {
    int position = (item - whole_items) * cluster + rank;  // among the blocks left over
    int passed = 0;                                        // of this shape
    for (;; ++place) {
      const int left = plan.class_at(place).groups() * (blocks_at(place) % cluster);
      if (position < left) break;
      position -= left;
      passed += left;
      if (!plan.ends_shape(place)) continue;
      const int missing = (cluster - passed % cluster) % cluster;  // to fill the last item
      exists = position >= missing && place + 1 < plan.classes;
      if (!exists) break;
      position -= missing;
      passed = 0;
    }
    const int blocks = blocks_at(place), left = blocks % cluster;
    group = exists ? position / left : 0;
    block = blocks - left + (exists ? position - group * left : 0);
  }
  const GroupClass of = plan.class_at(place);
  const AxisGroups &frames = of.frames, &height = of.height, &width = of.width;
  const int f = group / (height.count * width.count), h = group / width.count % height.count, w = group % width.count;
  const int first_row = block * rows, rest = exists ? frames.extent * height.extent * width.extent - first_row : 0;
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
