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

/// The `index`-th class in the order of the grid: along each axis the first group, those between, the last.
int in_grid_order(const int (&kinds)[3], int index) {
  const int position[3] = {index / (kinds[1] * kinds[2]), index / kinds[2] % kinds[1], index % kinds[2]};
  int result = 0;
  for (int i = 0; i < 3; ++i) {
    const int kind = kinds[i] < 3 || position[i] == 0 ? position[i] : 3 - position[i];
    result = result * kinds[i] + kind;
  }
  return result;
}

}  // namespace

SlidingPlan make_sliding_plan(const BoxPartition& tiles, const int (&window)[3], int rows, int cluster) {
  SlidingPlan plan{};
  plan.cluster = cluster;
  for (int i = 0; i < 3; ++i) {
    plan.kinds[i] = group_axis(tiles.grid[i], tiles.boxes[i], tiles.extent[i], window[i], plan.axis[i]);
  }
  plan.classes = plan.kinds[0] * plan.kinds[1] * plan.kinds[2];
  int place = 0;
  for (int shape = 0; shape < 8; ++shape) {
    for (int index = 0; index < plan.classes && place < plan.classes; ++index) {
      plan.order[place] = static_cast<int8_t>(in_grid_order(plan.kinds, index));
      place += plan.shape_at(place) == shape;
    }
  }
  int left_over = 0;  // blocks of a section
  for (place = 0; place < plan.classes; ++place) {
    const GroupClass of = plan.class_at(place);
    const int blocks = ceil_div(of.tokens(), rows);
    plan.first_item[place + 1] = plan.first_item[place] + of.groups() * (blocks / cluster);
    left_over += of.groups() * (blocks % cluster);
    if (!plan.ends_section(place)) continue;
    plan.first_item[place + 1] += ceil_div(left_over, cluster);
    left_over = 0;
  }
  return plan;
}

}  // namespace vorta
