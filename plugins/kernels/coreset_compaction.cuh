// SPDX-License-Identifier: Apache-2.0
//
// Copies the keys and values that a coreset head attends to into contiguous rows. A warp copies rows of key and value
// side by side, 8 rows of both in flight.
#ifndef VORTA_TRT_KERNELS_CORESET_COMPACTION_CUH_
#define VORTA_TRT_KERNELS_CORESET_COMPACTION_CUH_

#include "coreset_ranking.cuh"
#include "params.h"

namespace vorta {

/// Rows of one head, in units of 16 bytes.
struct RowCopy {
  const uint4* source;
  int64_t source_stride;  // from token to token
  uint4* target;          // rows follow one another
};

struct HeadCopy {
  RowCopy key, value;
};

__device__ __forceinline__ RowCopy row_copy(const TensorView& source, void* compact, int64_t compact_row, int sample,
                                            int head, int head_dim) {
  constexpr int kElements = kLaneElements;  // every stride is a multiple of 16 bytes
  return {
      static_cast<const uint4*>(source.data) + (sample * source.batch_stride + head * source.head_stride) / kElements,
      source.token_stride / kElements, static_cast<uint4*>(compact) + compact_row * (head_dim / kElements)};
}

__device__ __forceinline__ HeadCopy head_copy(const RoutedAttentionParams& params, int sample, int head) {
  const int64_t row = (int64_t{sample} * params.heads + head) * (params.kept_tokens + params.text_tokens);
  return {row_copy(params.key, params.compact_key, row, sample, head, params.head_dim),
          row_copy(params.value, params.compact_value, row, sample, head, params.head_dim)};
}

/// Rows [first, first + rows) of a head become those of the tokens token_of(0 .. rows - 1), zeros where that is
/// negative. kWidth lanes copy one row, so D is 8 * kWidth.
template <int kWidth, class TokenOf>
__device__ __forceinline__ void copy_rows(const HeadCopy& copy, int first, int rows, const TokenOf& token_of) {
  constexpr int kGroups = kWarpLanes / kWidth;
  constexpr int kLoads = 8 / kGroups;
  const int group = threadIdx.x % kWarpLanes / kWidth;
  const int column = threadIdx.x % kWidth;
#pragma unroll 1
  for (int begin = group; begin < rows; begin += kLoads * kGroups) {
    uint4 key[kLoads], value[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int row = begin + i * kGroups;
      const int token = row < rows ? token_of(row) : -1;
      key[i] = value[i] = {};
      if (token >= 0) {
        key[i] = __ldg(copy.key.source + token * copy.key.source_stride + column);
        value[i] = __ldg(copy.value.source + token * copy.value.source_stride + column);
      }
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const int row = begin + i * kGroups;
      if (row < rows) {
        copy.key.target[int64_t{first + row} * kWidth + column] = key[i];
        copy.value.target[int64_t{first + row} * kWidth + column] = value[i];
      }
    }
  }
}

}  // namespace vorta

#endif  // VORTA_TRT_KERNELS_CORESET_COMPACTION_CUH_
