// SPDX-License-Identifier: Apache-2.0
#include "sliding_plan.h"

#include <climits>

namespace vorta {
namespace {

constexpr int ceil_div(int value, int divisor) { return (value + divisor - 1) / divisor; }

/// `window` <= `tiles`, both in tiles; returns the number of kinds.
int group_axis(int tiles, int window, int extent, AxisGroups (&groups)[3]) {
  const int last_start = tiles - window;
  if (last_start == 0) {  // the whole axis is seen
    groups[0] = {1, 0, 0, tiles * extent, 0, 0};
    return 1;
  }
  const int border = window / 2 + 1;  // tiles that share the first, and the last, window
  groups[0] = {1, 0, 0, border * extent, 0, 0};
  groups[1] = {1, (tiles - border) * extent, 0, border * extent, last_start * extent, 0};
  if (last_start == 1) return 2;
  groups[2] = {last_start - 1, border * extent, extent, extent, extent, extent};
  return 3;
}

/// Picks the boxes that need the fewest blocks of keys, then the fewest boxes.
void choose_boxes(int keys, SlidingPlan& plan) {
  const auto& window = plan.window;
  int best_blocks = INT_MAX, best_boxes = INT_MAX;
  for (int width = 1; width <= window[2] && width <= keys; ++width) {
    if (window[2] % width != 0) continue;
    for (int height = 1; height <= window[1] && width * height <= keys; ++height) {
      if (window[1] % height != 0) continue;
      const int per_block = keys / (width * height);
      const int boxes = window[0] * (window[1] / height) * (window[2] / width);
      const int blocks = ceil_div(boxes, per_block);
      if (blocks > best_blocks || (blocks == best_blocks && boxes >= best_boxes)) continue;
      best_blocks = blocks;
      best_boxes = boxes;
      plan.box_width = width;
      plan.box_height = height;
      plan.boxes_per_block = per_block;
    }
  }
  plan.boxes_per_row = window[2] / plan.box_width;
  plan.boxes_per_frame = plan.boxes_per_row * (window[1] / plan.box_height);
  plan.boxes = best_boxes;
  plan.fill = keys - plan.boxes_per_block * plan.box_width * plan.box_height;
  plan.key_blocks = best_blocks;
}

}  // namespace

SlidingPlan make_sliding_plan(const BoxPartition& tiles, const int (&window)[3], int rows, int keys, int cluster) {
  SlidingPlan plan{};
  plan.cluster = cluster;
  for (int i = 0; i < 3; ++i) {
    plan.kinds[i] = group_axis(tiles.boxes[i], window[i], tiles.extent[i], plan.axis[i]);
    plan.window[i] = window[i] * tiles.extent[i];
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
  choose_boxes(keys, plan);
  return plan;
}

}  // namespace vorta
