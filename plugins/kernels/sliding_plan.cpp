// SPDX-License-Identifier: Apache-2.0
#include "sliding_plan.h"

namespace vorta {
namespace {

constexpr int ceil_div(int value, int divisor) { return (value + divisor - 1) / divisor; }

/// Groups of an axis of `grid` tokens in `tiles` tiles of `extent` tokens, of which the last may be shorter. `window`:
/// in tiles, at most `tiles`. Returns the number of kinds.
int group_axis(int grid, int tiles, int extent, int window, AxisGroups (&groups)[3]) {
  const int last_start = tiles - window;
  if (last_start == 0) {  // the whole axis is seen
    groups[0] = {1, 0, 0, grid, 0, 0, grid};
    return 1;
  }
  const int border = window / 2 + 1;  // tiles that share the first, and the last, window
  const int last_group = (tiles - border) * extent, last_window = last_start * extent;
  groups[0] = {1, 0, 0, border * extent, 0, 0, window * extent};
  groups[1] = {1, last_group, 0, grid - last_group, last_window, 0, grid - last_window};
  if (last_start == 1) return 2;
  groups[2] = {last_start - 1, border * extent, extent, extent, extent, extent, window * extent};
  return 3;
}

}  // namespace

SlidingPlan make_sliding_plan(const BoxPartition& tiles, const int (&window)[3], int rows, int cluster) {
  SlidingPlan plan{};
  plan.cluster = cluster;
  for (int i = 0; i < 3; ++i) {
    plan.kinds[i] = group_axis(tiles.grid[i], tiles.boxes[i], tiles.extent[i], window[i], plan.axis[i]);
  }
  plan.classes = plan.kinds[0] * plan.kinds[1] * plan.kinds[2];
  for (int index = 0; index < plan.classes; ++index) {
    const AxisGroups& frames = plan.axis[0][index / (plan.kinds[1] * plan.kinds[2])];
    const AxisGroups& height = plan.axis[1][index / plan.kinds[2] % plan.kinds[1]];
    const AxisGroups& width = plan.axis[2][index % plan.kinds[2]];
    const int blocks = ceil_div(frames.extent * height.extent * width.extent, rows);
    const int groups = frames.count * height.count * width.count;
    const int left_over = ceil_div(groups * (blocks % cluster), cluster);
    plan.first_item[index + 1] = plan.first_item[index] + groups * (blocks / cluster) + left_over;
  }
  return plan;
}

}  // namespace vorta
