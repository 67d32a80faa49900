// SPDX-License-Identifier: Apache-2.0
//
// The kernels' parameters, passed by value: make_params() makes them from the C API's structs once per call.
#ifndef VORTA_TRT_KERNELS_PARAMS_H_
#define VORTA_TRT_KERNELS_PARAMS_H_

#include <cstdint>

#include "bucket_partition.h"
#include "vorta_trt/cross_attention.h"
#include "vorta_trt/routed_attention.h"

namespace vorta {

/// A [B, S+T, N, D] tensor whose last axis is contiguous; strides in elements.
struct TensorView {
  const void* data;
  int64_t batch_stride, token_stride, head_stride;
};

struct RoutedAttentionParams {
  TensorView query, key, value;
  TensorView output;           // written
  const int32_t* routes;       // [B, N]; null: every head is full attention, of one sequence to another, without text
  const int32_t* text_length;  // [B], null if T == 0

  int32_t* kept_queries;     // [B, N, kept_tokens], see workspace.h
  int32_t* dropped_queries;  // [B, N, S - kept_tokens]
  int32_t* kept_keys;        // [B, N, kept_tokens]; kept_queries if they choose the keys
  void* compact_key;  // [B, N, kept_tokens + T, D]: the rows of kept_keys, then the text; null unless D is 64 or 128
  void* compact_value;
  uint32_t* work_counter;  // [kWorkCounters]; null only where routes are

  void* chunk_keys;  // fp8 only: see fp8/images.h
  void* chunk_values;
  void* chunk_notes;
  void* head_statistics;
  int chunks;  // of a head

  int batch, heads, head_dim;
  int video_tokens, text_tokens;  // S, T
  int tokens;                     // S + T
  int video_keys;                 // S again, unless keys and queries are different sequences
  int key_tokens;                 // video_keys + T

  BoxPartition tiles;
  int window[3];  // in tiles, clipped to the number of tiles
  // Sizes of a window's plane and row, in tiles, or in tokens if the tiles are ragged. Indices say whether the window
  // reaches the grid's end, where the last tile is shorter, along height and width.
  FastDivmod window_plane[2][2];
  FastDivmod window_row[2];

  BucketPartition buckets;
  int kept_tokens;   // of a head: that of buckets
  float scale_log2;  // scale of the logits times log2(e)
};

/// A token id from a list of the coreset. If the list was not written, because routes changed during the call, the
/// result is an arbitrary token, but always a valid one.
CUTLASS_HOST_DEVICE int listed_token(const RoutedAttentionParams& params, const int32_t* entry) {
  const auto token = static_cast<unsigned>(*entry), last = static_cast<unsigned>(params.video_tokens - 1);
  return static_cast<int>(token < last ? token : last);
}

/// `problem` and `tensors` must be valid.
RoutedAttentionParams make_params(const vorta_routed_attention_problem& problem,
                                  const vorta_routed_attention_tensors& tensors);

/// Parameters of attention to another sequence. The call must be valid and not empty. Queries become video tokens of
/// one row.
RoutedAttentionParams make_params(const vorta_cross_attention_params& call);

}  // namespace vorta

#endif  // VORTA_TRT_KERNELS_PARAMS_H_
