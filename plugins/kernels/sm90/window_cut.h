// SPDX-License-Identifier: Apache-2.0
//
// How TMA fetches the keys of a sliding window, planned on the host from the geometry alone.
//
// A window is a box of tokens. It is cut into small boxes of one shape, box_width x box_height tokens of one frame,
// that TMA fetches from raster order; boxes_per_block of them are one block of keys, whose other rows stay empty. Where
// the extents of a window have no divisors that fill a block well (19 x 23 tokens), the window is cut into two parts
// first, along width or height, and each part has boxes of its own shape and begins a block of its own.
//
// At the end of a grid that the tiles do not divide, windows are shorter. Along height and width there are two lengths
// each, so there are up to four shapes of a window's plane; frames only say how many planes there are.
#ifndef VORTA_TRT_KERNELS_SM90_WINDOW_CUT_H_
#define VORTA_TRT_KERNELS_SM90_WINDOW_CUT_H_

#include "../sliding_plan.h"

namespace vorta::sm90 {

/// A part of a window's plane, in tokens.
struct WindowPart {
  int row = 0, column = 0;    // where it begins
  int height = 0, width = 0;  // 0 if there is no such part
  int box_height = 0, box_width = 0;
  int boxes_per_frame = 0, boxes_per_block = 0;

  CUTLASS_HOST_DEVICE int box_tokens() const { return box_height * box_width; }
};

struct WindowCut {
  static constexpr int kParts = 2;
  static constexpr int kShapes = 4;

  int height, width;   // of the largest window, in tokens
  bool is_shorter[2];  // whether windows have a second height, and width
  WindowPart part[kShapes][kParts];

  /// Which shape a window's plane has.
  CUTLASS_HOST_DEVICE int shape_of(const int (&window_extent)[3]) const {
    return 2 * (window_extent[1] != height) + (window_extent[2] != width);
  }
};

/// The cut of the windows of `plan`; `keys`: keys of a block.
WindowCut make_window_cut(const SlidingPlan& plan, int keys);

}  // namespace vorta::sm90

#endif  // VORTA_TRT_KERNELS_SM90_WINDOW_CUT_H_
