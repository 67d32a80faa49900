// SPDX-License-Identifier: Apache-2.0
//
// A block copies a token. Its lanes lie along the head dimension, 16 bytes each, and its rows along the heads, in the
// order in which ranks take them, so that the permutation costs one load of an index for a row of D elements.
#include <algorithm>

#include "exchange/pack.h"
#include "kernel_launch.h"

namespace vorta::exchange {
namespace {

constexpr int kThreads = 256;  // about; a whole number of rows

/// The head at a place of the order. A value out of range is clamped, so that no access is outside of a tensor.
__device__ __forceinline__ int head_at(const PackCall& call, int place) {
  const int head = __ldg(call.head_order + place);
  return min(max(head, 0), call.heads - 1);
}

/// Calls copy(head, rank, head of the rank, vector of the head) for what the thread copies of a token.
template <class Copy>
__device__ __forceinline__ void for_heads(const PackCall& call, int first, int last, const Copy& copy) {
  const int row = threadIdx.x / call.head_vectors, vector = threadIdx.x - row * call.head_vectors;
#pragma unroll 2
  for (int place = first + row; place < last; place += call.block_rows) {
    const int rank = place / call.rank_heads;
    copy(head_at(call, place), rank, place - rank * call.rank_heads, vector);
  }
}

__global__ void __launch_bounds__(kThreads) pack_kernel(const __grid_constant__ Pack pack) {
  const PackCall& call = pack.call;
  const int b = blockIdx.y;
  // Video tokens of this rank, then text tokens; padding is left out.
  const int token = blockIdx.x;
  const bool is_text = token >= call.own_tokens;
  const int source_row = is_text ? token - call.own_tokens + call.shard : token;
  const int64_t own_row = is_text ? call.tokens - call.text_tokens + token - call.own_tokens : call.own_first + token;
  const int first = is_text ? call.rank * call.rank_heads : 0;
  const int last = token >= call.own_tokens + call.text_tokens ? first
                   : is_text                                   ? first + call.rank_heads
                                                               : call.places;
  for_heads(call, first, last, [&](int head, int rank, int rank_head, int vector) {
    uint4 vectors[3];
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      const TokenTensor& t = pack.tensors[i];
      vectors[i] = t.data[b * t.batch_stride + source_row * t.token_stride + head * t.head_stride + vector];
    }
    uint4* target = rank == call.rank
                        ? pack.heads + (b * call.tokens + own_row) * 3 * call.row
                        : call.buffer + ((int64_t{rank} * call.batch + b) * call.shard + token) * 3 * call.row;
    target += rank_head * call.head_vectors + vector;
#pragma unroll
    for (int i = 0; i < 3; ++i) target[i * call.row] = vectors[i];
  });
  if (blockIdx.x > 0) return;
  for (int h = threadIdx.x; h < call.rank_heads; h += blockDim.x) {
    const int head = head_at(call, call.rank * call.rank_heads + h);
    pack.own_routes[b * call.rank_heads + h] = pack.routes[b * call.heads + head];
  }
}

__global__ void __launch_bounds__(kThreads) unpack_kernel(const __grid_constant__ Unpack unpack) {
  const PackCall& call = unpack.call;
  const int b = blockIdx.y;
  const int row = blockIdx.x;  // of X+T
  const bool is_text = row >= call.shard;
  const bool is_padding = !is_text && row >= call.own_tokens;
  const int64_t own_row = is_text ? call.tokens - call.text_tokens + row - call.shard : call.own_first + row;
  const TokenTensor& output = unpack.output;
  for_heads(call, 0, call.places, [&](int head, int rank, int rank_head, int vector) {
    uint4 elements{0, 0, 0, 0};
    if (!is_padding) {
      const uint4* source =
          rank == call.rank
              ? unpack.heads_output + (b * call.tokens + own_row) * call.row
              : call.buffer + ((int64_t{rank} * call.batch + b) * (call.shard + call.text_tokens) + row) * call.row;
      elements = source[rank_head * call.head_vectors + vector];
    }
    output.data[b * output.batch_stride + row * output.token_stride + head * output.head_stride + vector] = elements;
  });
}

template <class Call>
cudaError_t launch(void (*kernel)(Call), Call call, int rows, cudaStream_t stream) {
  call.call.block_rows = kThreads / call.call.head_vectors;
  const LaunchShape shape{dim3(rows, call.call.batch), call.call.block_rows * call.call.head_vectors, 0, stream};
  return launch_kernel(shape, kernel, call);
}

}  // namespace

cudaError_t launch_pack(const Pack& pack, cudaStream_t stream) {
  // At least one block, for the routes of a rank without tokens.
  return launch(pack_kernel, pack, std::max(pack.call.own_tokens + pack.call.text_tokens, 1), stream);
}

cudaError_t launch_unpack(const Unpack& unpack, cudaStream_t stream) {
  return launch(unpack_kernel, unpack, unpack.call.shard + unpack.call.text_tokens, stream);
}

}  // namespace vorta::exchange
