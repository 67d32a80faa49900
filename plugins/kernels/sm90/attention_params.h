// SPDX-License-Identifier: Apache-2.0
//
// What the Hopper kernel gets, by value.
#ifndef VORTA_TRT_KERNELS_SM90_ATTENTION_PARAMS_H_
#define VORTA_TRT_KERNELS_SM90_ATTENTION_PARAMS_H_

#include <cuda.h>

#include <algorithm>

#include "../sliding_plan.h"

namespace vorta::sm90 {

/// How TMA sees one of key and value. Coordinates of a flat map: column, token, head, sample; of the grid map: column,
/// w, frame * H + h, head, sample.
struct KeyMaps {
  CUtensorMap flat;     // box of kKeys tokens
  CUtensorMap compact;  // the coreset in the workspace; box of kKeys tokens
  CUtensorMap grid;     // box of SlidingPlan's box_width x box_height tokens
};

struct AttentionParams {
  KeyMaps key, value;
  CUtensorMap fill;  // box of SlidingPlan's `fill` rows, read out of bounds, where TMA gives zeros
  RoutedAttentionParams problem;
  SlidingPlan sliding;
  int items_full, items_coreset, items_text, items_sliding;  // of a head, by its route; text: beside items_sliding

  /// Fills in all but the maps. `rows`, `keys`: of a block; `cluster`: blocks of an item.
  void plan(const RoutedAttentionParams& of, int rows, int keys, int cluster) {
    problem = of;
    sliding = make_sliding_plan(of.tiles, of.window, rows, keys, cluster);
    const auto items = [=](int tokens) { return (tokens + cluster * rows - 1) / (cluster * rows); };
    items_full = items(of.video_tokens + of.text_tokens);
    items_coreset = items(of.kept_tokens + of.text_tokens);
    items_text = items(of.text_tokens);
    items_sliding = sliding.first_item[sliding.classes];
  }

  /// Items of all heads, whatever their routes are: no more than this.
  int64_t most_items() const {
    return int64_t{std::max({items_full, items_coreset, items_text + items_sliding})} * problem.batch * problem.heads;
  }
};

}  // namespace vorta::sm90

#endif  // VORTA_TRT_KERNELS_SM90_ATTENTION_PARAMS_H_
