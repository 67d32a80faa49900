// SPDX-License-Identifier: Apache-2.0
//
// Parameters of the Hopper kernel, passed by value.
#ifndef VORTA_TRT_KERNELS_SM90_ATTENTION_PARAMS_H_
#define VORTA_TRT_KERNELS_SM90_ATTENTION_PARAMS_H_

#include <cuda.h>

#include <algorithm>

#include "../sliding_plan.h"
#include "window_cut.h"

namespace vorta::sm90 {

/// The work items of a call. The form of its keys does not matter here.
struct Pattern {
  RoutedAttentionParams problem;
  SlidingPlan sliding;
  int items_full, items_coreset, items_text, items_sliding;  // of a head, by its route; text: beside items_sliding

  /// `rows`: query rows of a block; `cluster`: blocks of an item.
  void plan(const RoutedAttentionParams& of, int rows, int cluster) {
    problem = of;
    sliding = make_sliding_plan(of.tiles, of.window, rows, cluster);
    const auto items = [=](int tokens) { return (tokens + cluster * rows - 1) / (cluster * rows); };
    items_full = items(of.video_tokens + of.text_tokens);
    items_coreset = items(of.kept_tokens + of.text_tokens);
    items_text = items(of.text_tokens);
    items_sliding = sliding.first_item[sliding.classes];
  }

  /// Upper bound of the number of items of all heads, whatever their routes are.
  int64_t most_items() const {
    return int64_t{std::max({items_full, items_coreset, items_text + items_sliding})} * problem.batch * problem.heads;
  }
};

/// The tensor maps by which TMA reads the keys, or the values. Coordinates of a flat map: column, token, head, sample;
/// of a grid map: column, w, frame * H + h, head, sample.
struct KeyMaps {
  CUtensorMap flat;                                         // box of kKeys tokens
  CUtensorMap compact;                                      // the coreset in the workspace; box of kKeys tokens
  CUtensorMap grid[WindowCut::kShapes][WindowCut::kParts];  // box of a WindowPart; only of those that exist
};

struct AttentionParams : Pattern {
  WindowCut cut;
  KeyMaps key, value;
};

/// The bytes that a kernel's parameters may have with every driver of CUDA 12.
static_assert(sizeof(AttentionParams) <= 4096, "too much for a kernel's parameters");

}  // namespace vorta::sm90

#endif  // VORTA_TRT_KERNELS_SM90_ATTENTION_PARAMS_H_
