// SPDX-License-Identifier: Apache-2.0
//
// What lies in the workspace of an exchange. H heads of a rank, X video tokens of a rank (see shards.h):
//
//   heads   [B, S+T, 3, H, D]  query, key and value of this rank's heads; received in place, read by the attention
//   output  [B, S+T, H, D]     of the attention, sent from where it lies
//   routes  int32 [B, H]       of this rank's heads
//   shared                     one after another, each needed when the one before is not any more:
//     packed    [P, B, X, 3, H, D]  what goes to each rank
//     the workspace of the attention
//     returned  [P, B, X+T, H, D]   outputs of this rank's tokens, of each rank's heads
//
// The blocks of `packed` and `returned` that a rank would send to itself are not used: its rows of `heads` are written,
// and its rows of `output` read, where they are.
#ifndef VORTA_TRT_KERNELS_EXCHANGE_BUFFERS_H_
#define VORTA_TRT_KERNELS_EXCHANGE_BUFFERS_H_

#include "exchange/shards.h"

namespace vorta::exchange {

struct Buffers {
  size_t heads, output, routes, shared;  // offsets in bytes
  size_t bytes;

  Buffers() = default;
  Buffers(const Shards& s, size_t attention_bytes) : heads(0) {
    constexpr size_t kAlignment = 256;
    const auto behind = [](size_t offset, size_t length) {
      return (offset + length + kAlignment - 1) / kAlignment * kAlignment;
    };
    const size_t row = s.batch * s.row() * sizeof(uint16_t);
    const size_t tokens = s.video_tokens + s.text_tokens;
    const size_t packed = row * 3 * s.ranks * s.shard;
    const size_t returned = row * s.ranks * (s.shard + s.text_tokens);
    output = behind(heads, row * 3 * tokens);
    routes = behind(output, row * tokens);
    shared = behind(routes, sizeof(int32_t) * s.batch * s.rank_heads);
    bytes = behind(shared, std::max({packed, attention_bytes, returned}));
  }
};

}  // namespace vorta::exchange

#endif  // VORTA_TRT_KERNELS_EXCHANGE_BUFFERS_H_
