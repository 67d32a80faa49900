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
  int8_t order[kMaxClasses];        // of the classes, see shape_at() and ends_section()
  int cluster;                      // query blocks that go over their keys together: an item
  int first_item[kMaxClasses + 1];  // of a head; those of blocks left over in a section count to its last class

  CUTLASS_HOST_DEVICE GroupClass class_at(int place) const {
    const int index = order[place], plane = index / kinds[2];
    return {axis[0][plane / kinds[1]], axis[1][plane % kinds[1]], axis[2][index % kinds[2]]};
  }

  /// The shape of the windows of a class: 4 f + 2 h + w, each 1 if they are shorter along the axis. Classes of the
  /// largest shape come first, since their items take longest, and classes of one shape in the order of the grid, so
  /// that items of one time find each other's keys in the L2 cache.
  CUTLASS_HOST_DEVICE int shape_at(int place) const {
    const GroupClass of = class_at(place);
    return 4 * (of.frames.window_extent != axis[0][0].window_extent) +
           2 * (of.height.window_extent != axis[1][0].window_extent) +
           (of.width.window_extent != axis[2][0].window_extent);
  }

  /// Whether the next class has windows of another shape or other frames, or there is none. The blocks that are left
  /// over in a section share items.
  CUTLASS_HOST_DEVICE bool ends_section(int place) const {
    return place + 1 >= classes || order[place] / (kinds[1] * kinds[2]) != order[place + 1] / (kinds[1] * kinds[2]) ||
           shape_at(place) != shape_at(place + 1);
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

/// The `rank`-th query block, of up to `rows` rows, of a head's `item`-th item. The first items of a class have blocks
/// of one group each. The blocks that are left over in the groups of a section then share items: their windows differ,
/// but have equally many blocks of keys.
CUTLASS_HOST_DEVICE QueryGroupBlock query_group_block(const SlidingPlan& plan, int item, int rank, int rows) {
  const int cluster = plan.cluster;
  const auto blocks_at = [&](int place) { return (plan.class_at(place).tokens() + rows - 1) / rows; };
  int place = 0;
  CUTLASS_PRAGMA_NO_UNROLL
  while (item >= plan.first_item[place + 1]) ++place;
  item -= plan.first_item[place];
  int blocks = blocks_at(place), group, block;
  const int whole = blocks / cluster;  // items of a group
  const int left_over = item - plan.class_at(place).groups() * whole;
  const bool shared = left_over < 0;
  bool exists = true;
  if (shared) {
    group = item / whole;
    block = (item - group * whole) * cluster + rank;
  } else {
    int position = left_over * cluster + rank;
    CUTLASS_PRAGMA_NO_UNROLL
    while (place > 0 && !plan.ends_section(place - 1)) --place;
    CUTLASS_PRAGMA_NO_UNROLL
    for (;; ++place) {
      blocks = blocks_at(place);
      const int left = plan.class_at(place).groups() * (blocks % cluster);
      exists = position < left;
      if (exists || plan.ends_section(place)) break;
      position -= left;
    }
    const int left = blocks % cluster;  // of a group
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

/// `window`: in tiles, at most as many as the grid has; `rows`: query rows of a block; `cluster`: blocks of an item.
SlidingPlan make_sliding_plan(const BoxPartition& tiles, const int (&window)[3], int rows, int cluster);

}  // namespace vorta

#endif  // VORTA_TRT_KERNELS_SLIDING_PLAN_H_
