// SPDX-License-Identifier: Apache-2.0
//
// Lists what the sliding branch of the Hopper kernel does, as JSON: of every item its query blocks, of each of those
// its query tokens and its blocks of key tokens, in the order in which the kernel fetches them.
//
//   list_sliding GRID TILE WINDOW ROWS KEYS CLUSTER      the first three are three numbers each
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "sm90/window_cut.h"

namespace {

using namespace vorta;
using namespace vorta::sm90;

/// The tokens of one box of keys, whose first row counts those of all frames.
void list_box(const BoxPartition& tiles, int row, int column, const WindowPart& part, const char*& comma) {
  for (int h = 0; h < part.box_height; ++h) {
    for (int w = 0; w < part.box_width; ++w, comma = ",") {
      std::printf("%s%d", comma, (row + h) * tiles.row_stride + column + w);
    }
  }
}

void list_keys(const BoxPartition& tiles, const WindowCut& cut, const QueryGroupBlock& group) {
  const char* between_blocks = "";
  for (const WindowPart& part : cut.part[cut.shape_of(group.window_extent)]) {
    if (part.height == 0) continue;
    const int boxes = group.window_extent[0] * part.boxes_per_frame, in_row = part.width / part.box_width;
    for (int first = 0; first < boxes; first += part.boxes_per_block, between_blocks = ",") {
      std::printf("%s[", between_blocks);
      const char* comma = "";
      for (int box = first; box < std::min(boxes, first + part.boxes_per_block); ++box) {
        const int frame = group.window_origin[0] + box / part.boxes_per_frame, in_frame = box % part.boxes_per_frame;
        const int row = group.window_origin[1] + part.row + in_frame / in_row * part.box_height;
        const int column = group.window_origin[2] + part.column + in_frame % in_row * part.box_width;
        list_box(tiles, frame * tiles.grid[1] + row, column, part, comma);
      }
      std::printf("]");
    }
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 13) return 2;
  int number[12];
  std::transform(arguments + 1, arguments + count, number, [](const char* text) { return std::atoi(text); });
  const int32_t grid[3] = {number[0], number[1], number[2]}, tile[3] = {number[3], number[4], number[5]};
  const BoxPartition tiles(grid, tile);
  int window[3];
  for (int axis = 0; axis < 3; ++axis) window[axis] = std::min(number[6 + axis], tiles.boxes[axis]);
  const int rows = number[9], keys = number[10], cluster = number[11];
  const SlidingPlan plan = make_sliding_plan(tiles, window, rows, cluster);
  const WindowCut cut = make_window_cut(plan, keys);
  std::printf("[");
  for (int item = 0; item < plan.first_item[plan.classes]; ++item) {
    std::printf("%s[", item == 0 ? "" : ",\n");
    for (int rank = 0; rank < cluster; ++rank) {
      const QueryGroupBlock group = query_group_block(plan, item, rank, rows);
      std::printf("%s{\"shared\":%s,\"queries\":[", rank == 0 ? "" : ",", group.shared_window ? "true" : "false");
      for (int row = 0; row < group.rows; ++row) std::printf("%s%d", row == 0 ? "" : ",", group.token(tiles, row));
      std::printf("],\"keys\":[");
      list_keys(tiles, cut, group);
      std::printf("]}");
    }
    std::printf("]");
  }
  std::printf("]\n");
  return 0;
}
