// SPDX-License-Identifier: Apache-2.0
#ifndef VORTA_TRT_KERNELS_EXCHANGE_PACK_H_
#define VORTA_TRT_KERNELS_EXCHANGE_PACK_H_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace vorta::exchange {

/// [B, X+T, heads, D] of this rank's tokens. Strides in vectors of 16 bytes.
struct TokenTensor {
  uint4* data;
  int64_t batch_stride, token_stride, head_stride;
};

/// Parameters of both kernels; rows and strides in vectors of 16 bytes.
struct PackCall {
  const int32_t* head_order;  // [N]
  int rank, ranks, batch;
  int heads;          // of the tensors and the routes
  int places;         // N, heads of the call
  int rank_heads;     // H = N / P
  int head_vectors;   // D / 8
  int block_rows;     // rows of D elements that a block copies at a time; set by the launch
  int own_tokens;     // video tokens of this rank
  int shard;          // X
  int text_tokens;    // T
  int64_t row;        // H D / 8
  int64_t own_first;  // this rank's first video token
  int64_t tokens;     // S+T
  uint4* buffer;      // packed or returned, see buffers.h
};

/// Copies query, key and value of this rank's tokens to `packed`. Rows of this rank's own heads go to `heads` instead,
/// together with all of their text rows. Also copies the routes of these heads.
struct Pack {
  PackCall call;
  TokenTensor tensors[3];
  uint4* heads;           // [B, S+T, 3, H, D]
  const int32_t* routes;  // [B, heads]
  int32_t* own_routes;    // [B, H]
};
cudaError_t launch_pack(const Pack& pack, cudaStream_t stream);

/// Gathers the output of this rank's tokens: of other ranks' heads from `returned`, of its own heads from
/// `heads_output`. Padding becomes zeros.
struct Unpack {
  PackCall call;
  TokenTensor output;
  const uint4* heads_output;  // [B, S+T, H, D]
};
cudaError_t launch_unpack(const Unpack& unpack, cudaStream_t stream);

}  // namespace vorta::exchange

#endif  // VORTA_TRT_KERNELS_EXCHANGE_PACK_H_
