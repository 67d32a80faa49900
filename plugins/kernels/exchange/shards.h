// SPDX-License-Identifier: Apache-2.0
//
// Where tokens and heads lie before and after the exchange. H = N / P heads of a rank; the other letters are those of
// vorta_trt/ulysses_attention.h.
#ifndef VORTA_TRT_KERNELS_EXCHANGE_SHARDS_H_
#define VORTA_TRT_KERNELS_EXCHANGE_SHARDS_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "vorta_trt/ulysses_attention.h"

namespace vorta::exchange {

/// Which video tokens every rank has.
struct TokenShards {
  int ranks;
  int64_t video_tokens;  // S
  int64_t shard;         // X

  TokenShards(int ranks, int64_t video_tokens)
      : ranks(ranks), video_tokens(video_tokens), shard((video_tokens + ranks - 1) / ranks) {}

  /// The first video token of a rank.
  int64_t first(int rank) const { return std::min(shard * rank, video_tokens); }
  /// Video tokens of a rank, without its padding.
  int64_t count(int rank) const { return first(rank + 1) - first(rank); }
};

/// Which video tokens and heads every rank has.
struct Shards : TokenShards {
  int batch;
  int text_tokens;   // T
  int heads;         // N
  int tensor_heads;  // of query, key, value and output, at least N
  int rank_heads;    // H
  int head_dim;      // D

  explicit Shards(const vorta_ulysses_attention_params& params)
      : TokenShards(params.ranks,
                    int64_t{1} * params.attention.grid[0] * params.attention.grid[1] * params.attention.grid[2]),
        batch(params.attention.batch),
        text_tokens(params.attention.text_tokens),
        heads(params.attention.heads),
        tensor_heads(params.tensor_heads == 0 ? heads : params.tensor_heads),
        rank_heads(heads / ranks),
        head_dim(params.attention.head_dim) {}

  /// Elements of a row of a rank's heads, of one tensor.
  int64_t row() const { return int64_t{1} * rank_heads * head_dim; }
};

}  // namespace vorta::exchange

#endif  // VORTA_TRT_KERNELS_EXCHANGE_SHARDS_H_
