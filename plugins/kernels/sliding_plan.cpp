// SPDX-License-Identifier: Apache-2.0
#include "sliding_plan.h"

#include <algorithm>
#include <numeric>

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
  std::iota(plan.order, plan.order + plan.classes, int8_t{0});
  const SlidingPlan unsorted = plan;  // whose places are the classes
  std::stable_sort(plan.order, plan.order + plan.classes,
                   [&](int left, int right) { return unsorted.shape_at(left) < unsorted.shape_at(right); });
  int left_over = 0;  // blocks whose windows have one shape
  for (int place = 0; place < plan.classes; ++place) {
    const GroupClass of = plan.class_at(place);
    const int blocks = ceil_div(of.tokens(), rows);
    plan.first_item[place + 1] = plan.first_item[place] + of.groups() * (blocks / cluster);
    left_over += of.groups() * (blocks % cluster);
    if (!plan.ends_shape(place)) continue;
    plan.items += ceil_div(left_over, cluster);
    left_over = 0;
  }
  plan.items += plan.first_item[plan.classes];
  return plan;
}

}  // namespace vorta
