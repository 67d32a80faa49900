// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "params.h"
#include "workspace.h"

namespace vorta {
namespace {

TensorView make_view(const void* data, const int64_t (&stride)[3]) { return {data, stride[0], stride[1], stride[2]}; }

/// `scale`: factor of the logits, 0 for 1/sqrt(head_dim).
float scale_log2_of(float scale, int head_dim) {
  constexpr double kLog2E = 1.4426950408889634;
  // Rounded to float as a caller's own scale is, so that naming the default gives the same bits as 0 does.
  const float default_scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)));
  return static_cast<float>(double{scale > 0.0f ? scale : default_scale} * kLog2E);
}

}  // namespace

RoutedAttentionParams make_params(const vorta_routed_attention_problem& problem,
                                  const vorta_routed_attention_tensors& tensors) {
  RoutedAttentionParams params{};
  params.query = make_view(tensors.query, tensors.query_stride);
  params.key = make_view(tensors.key, tensors.key_stride);
  params.value = make_view(tensors.value, tensors.value_stride);
  params.output = make_view(tensors.output, tensors.output_stride);
  params.routes = tensors.routes;
  params.text_length = tensors.text_length;

  const WorkspaceLayout layout = workspace_layout(problem);
  char* workspace = static_cast<char*>(tensors.workspace);
  params.kept_queries = reinterpret_cast<int32_t*>(workspace + layout.kept_queries);
  params.dropped_queries = reinterpret_cast<int32_t*>(workspace + layout.dropped_queries);
  params.kept_keys = reinterpret_cast<int32_t*>(workspace + layout.kept_keys);
  if (has_compact_rows(problem)) {
    params.compact_key = workspace + layout.compact_key;
    params.compact_value = workspace + layout.compact_value;
  }
  if (has_chunks(problem)) {
    params.chunk_keys = workspace + layout.chunk_keys;
    params.chunk_values = workspace + layout.chunk_values;
    params.chunk_notes = workspace + layout.chunk_notes;
    params.head_statistics = workspace + layout.head_statistics;
    params.chunks = static_cast<int>(fp8::chunks_per_head(problem));
  }
  params.work_counter = reinterpret_cast<uint32_t*>(workspace + layout.work_counter);

  params.batch = problem.batch;
  params.heads = problem.heads;
  params.head_dim = problem.head_dim;
  params.video_tokens = problem.grid[0] * problem.grid[1] * problem.grid[2];
  params.text_tokens = problem.text_tokens;
  params.tokens = params.video_tokens + params.text_tokens;
  params.video_keys = params.video_tokens;
  params.key_tokens = params.tokens;

  params.tiles = BoxPartition(problem.grid, problem.tile);
  for (int axis = 0; axis < 3; ++axis) {
    params.window[axis] = std::min<int>(problem.window[axis], params.tiles.boxes[axis]);
  }
  const BoxPartition& tiles = params.tiles;
  const auto window_extent = [&](int axis, int at_end) {
    if (!tiles.ragged) return params.window[axis];
    const int first = at_end ? tiles.boxes[axis] - params.window[axis] : 0;
    return std::min(params.window[axis] * tiles.extent[axis], tiles.grid[axis] - first * tiles.extent[axis]);
  };
  for (int w = 0; w < 2; ++w) {
    params.window_row[w] = FastDivmod(window_extent(2, w));
    for (int h = 0; h < 2; ++h) params.window_plane[h][w] = FastDivmod(window_extent(1, h) * window_extent(2, w));
  }

  params.buckets = BucketPartition(problem.grid, problem.bucket, problem.keep);
  params.kept_tokens = params.buckets.kept_tokens;
  params.scale_log2 = scale_log2_of(problem.scale, problem.head_dim);
  return params;
}

RoutedAttentionParams make_params(const vorta_cross_attention_params& call) {
  RoutedAttentionParams params{};
  params.query = make_view(call.query, call.query_stride);
  params.key = make_view(call.key, call.key_stride);
  params.value = make_view(call.value, call.value_stride);
  params.output = make_view(call.output, call.output_stride);
  params.batch = call.batch;
  params.heads = call.heads;
  params.head_dim = call.head_dim;
  params.video_tokens = params.tokens = call.query_tokens;
  params.video_keys = params.key_tokens = call.key_tokens;

  // One row of one tile: the plan of the sliding branch needs a grid, though no head takes that branch.
  const int32_t row[3] = {1, 1, call.query_tokens};
  params.tiles = BoxPartition(row, row);
  params.window[0] = params.window[1] = params.window[2] = 1;
  params.scale_log2 = scale_log2_of(call.scale, call.head_dim);
  return params;
}

}  // namespace vorta
