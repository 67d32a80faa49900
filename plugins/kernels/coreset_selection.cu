// SPDX-License-Identifier: Apache-2.0
//
// The coreset of every head that `routes` sends there, and what the attention after it wants beside it: a fixed grid
// whose blocks find the coreset heads themselves and share out pairs (bucket chunk, head) among them.
#include "coreset_compaction.cuh"
#include "coreset_ranking.cuh"
#include "coreset_selection.h"
#include "kernel_launch.h"
#include "workspace.h"

namespace vorta {
namespace {

constexpr int kWarps = 8;  // buckets of a chunk; their kept rows are 12 KB in a row at D = 128, keep = 6
constexpr int kThreads = kWarps * kWarpLanes;
constexpr int kTextRows = 8;  // of a warp
constexpr int kBucketKinds = 8;

/// 64 registers a thread for three rows in flight (D <= 64), 80 for six: as many warps as spill nothing, because they
/// cover the memory's latency.
template <int kWidth>
constexpr int kBlocksPerSm = kWidth == 8 ? 4 : 3;

struct CoresetHead {
  int sample, head;
};

struct SharedMemory {
  BucketScratch scratch[kWarps];
  int32_t offsets[kBucketKinds][kMaxBucketTokens];  // token ids of a bucket of each kind relative to its first
  CoresetHead heads[kThreads];
  int heads_of_warp[kWarps];
};

/// Lets the kernel after this one start its prologue, if it was launched so; it waits for this one's end by itself.
__device__ __forceinline__ void launch_dependents() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Lists the coreset heads among the kThreads (sample, head) pairs from `first` on, and returns how many they are.
__device__ int list_coreset_heads(const RoutedAttentionParams& params, int64_t first, SharedMemory& shared) {
  const int warp = threadIdx.x / kWarpLanes;
  const int64_t pair = first + threadIdx.x;
  const bool mine = pair < int64_t{params.batch} * params.heads && params.routes[pair] == VORTA_CORESET;
  const unsigned votes = __ballot_sync(0xffffffffu, mine);
  __syncthreads();  // the list before is read to its end, and the offsets are written
  if (threadIdx.x % kWarpLanes == 0) shared.heads_of_warp[warp] = __popc(votes);
  __syncthreads();
  int before = 0, total = 0;
#pragma unroll
  for (int other = 0; other < kWarps; ++other) {
    before += other < warp ? shared.heads_of_warp[other] : 0;
    total += shared.heads_of_warp[other];
  }
  if (mine) {
    const unsigned heads = params.heads;  // B N < 2^32
    const int sample = static_cast<unsigned>(pair) / heads;
    const int position = before + __popc(votes & ((1u << threadIdx.x % kWarpLanes) - 1));
    shared.heads[position] = {sample, static_cast<int>(static_cast<unsigned>(pair) % heads)};
  }
  __syncthreads();
  return total;
}

/// Fills in the token offsets of every kind of bucket that there is.
__device__ void list_offsets(const BucketPartition& buckets, int32_t (&offsets)[kBucketKinds][kMaxBucketTokens]) {
  const int kinds = buckets.ragged ? kBucketKinds : 1;
  for (int i = threadIdx.x; i < kinds * kMaxBucketTokens; i += kThreads) {
    const int kind = i / kMaxBucketTokens, inside = i % kMaxBucketTokens;
    const int position[3] = {kind / 4 * (buckets.boxes[0] - 1), kind / 2 % 2 * (buckets.boxes[1] - 1),
                             kind % 2 * (buckets.boxes[2] - 1)};
    if (inside < buckets.size_at(position)) {
      offsets[kind][inside] = buckets.token(position, inside) - buckets.first_token(position);
    }
  }
}

/// Ranks the bucket of `scratch` by `tokens` and writes its lists; `dropped` is null where nobody reads it. The kept
/// ids are in `scratch` afterwards.
template <class Element, int kWidth>
__device__ __forceinline__ void select_bucket(const RoutedAttentionParams& params, const TensorView& tokens,
                                              const CoresetHead& where, const int32_t* offsets, int32_t* kept,
                                              int32_t* dropped, BucketScratch& scratch) {
  const Bucket& bucket = scratch.bucket;
  const auto* row = static_cast<const Element*>(tokens.data) + where.sample * tokens.batch_stride +
                    where.head * tokens.head_stride + bucket.first_token * tokens.token_stride;
  bucket_products<Element, kWidth>(row, tokens.token_stride, params.head_dim, offsets, bucket.tokens, bucket.centre,
                                   scratch);
  __syncwarp();
  bucket_similarities(bucket.tokens, bucket.centre, scratch);
  __syncwarp();

  const int64_t head = int64_t{where.sample} * params.heads + where.head;
  for (int inside = threadIdx.x % kWarpLanes; inside < bucket.tokens; inside += kWarpLanes) {
    // The centre takes slot 0, the others follow by rank.
    const int slot = inside == bucket.centre ? 0 : 1 + stable_rank(scratch, bucket.tokens, inside);
    const int token = bucket.first_token + offsets[inside];
    if (slot < bucket.kept) {
      kept[head * params.kept_tokens + bucket.first_kept + slot] = token;
      scratch.kept[slot] = token;
    } else if (dropped != nullptr) {
      dropped[head * params.buckets.dropped_tokens + bucket.first_dropped + slot - bucket.kept] = token;
    }
  }
  __syncwarp();
}

/// Any grid does; enough blocks to fill the GPU are best.
template <class Element, int kWidth>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm<kWidth>)
    coreset_selection_kernel(const __grid_constant__ RoutedAttentionParams params, const bool compact) {
  __shared__ SharedMemory shared;
  launch_dependents();
  if (blockIdx.x == 0 && threadIdx.x < kWorkCounters) params.work_counter[threadIdx.x] = 0;

  const BucketPartition& buckets = params.buckets;
  list_offsets(buckets, shared.offsets);
  const int warp = threadIdx.x / kWarpLanes;
  BucketScratch& scratch = shared.scratch[warp];
  const int bucket_chunks = (buckets.count() + kWarps - 1) / kWarps;
  const int text_chunks = compact ? (params.text_tokens + kWarps * kTextRows - 1) / (kWarps * kTextRows) : 0;

  const int64_t pairs = int64_t{params.batch} * params.heads;
  for (int64_t first = 0; first < pairs; first += kThreads) {
    const int heads = list_coreset_heads(params, first, shared);
    if (heads == 0) continue;
    // Neighbouring blocks take neighbouring heads of the same tokens, which lie side by side in memory.
    const int head_step = gridDim.x % heads, chunk_step = gridDim.x / heads;
    int head = blockIdx.x % heads, chunk = blockIdx.x / heads;
    for (; chunk < bucket_chunks + text_chunks; head += head_step, chunk += chunk_step) {
      if (head >= heads) {
        head -= heads;
        if (++chunk == bucket_chunks + text_chunks) break;
      }
      const CoresetHead where = shared.heads[head];
      if (chunk < bucket_chunks) {
        const int index = chunk * kWarps + warp;
        if (index >= buckets.count()) continue;  // whole warps only
        scratch.bucket = buckets.bucket(index);  // by every lane
        __syncwarp();
        const int32_t* offsets = shared.offsets[scratch.bucket.kind];
        select_bucket<Element, kWidth>(params, params.query, where, offsets, params.kept_queries,
                                       params.dropped_queries, scratch);
        if (params.kept_keys != params.kept_queries) {
          select_bucket<Element, kWidth>(params, params.key, where, offsets, params.kept_keys, nullptr, scratch);
        }
        if constexpr (kWidth < kWarpLanes) {
          if (compact) {
            copy_rows<kWidth>(head_copy(params, where.sample, where.head), scratch.bucket.first_kept,
                              scratch.bucket.kept, [&](int slot) { return scratch.kept[slot]; });
            __syncwarp();
          }
        }
      } else if constexpr (kWidth < kWarpLanes) {
        const int begin = ((chunk - bucket_chunks) * kWarps + warp) * kTextRows;
        const int valid = params.text_length[where.sample];
        copy_rows<kWidth>(head_copy(params, where.sample, where.head), params.kept_tokens + begin,
                          min(kTextRows, params.text_tokens - begin),
                          [&](int row) { return begin + row < valid ? params.video_tokens + begin + row : -1; });
      }
    }
  }
}

template <class Element, int kWidth>
cudaError_t launch(const RoutedAttentionParams& params, bool compact, cudaStream_t stream) {
  int processors = 0;
  if (cudaError_t error = count_processors(&processors)) return error;
  const dim3 grid(processors * kBlocksPerSm<kWidth>);
  return launch_kernel({grid, kThreads, 0, stream}, coreset_selection_kernel<Element, kWidth>, params, compact);
}

template <class Element>
cudaError_t launch(const RoutedAttentionParams& params, bool compact, cudaStream_t stream) {
  if (params.head_dim <= 64) return launch<Element, 8>(params, compact, stream);
  if (params.head_dim <= 128) return launch<Element, 16>(params, compact, stream);
  return launch<Element, 32>(params, compact, stream);
}

}  // namespace

cudaError_t launch_coreset_selection(const RoutedAttentionParams& params, vorta_dtype dtype, bool compact,
                                     cudaStream_t stream) {
  if (compact && params.compact_key == nullptr) return cudaErrorInvalidValue;
  return dtype == VORTA_FLOAT16 ? launch<cutlass::half_t>(params, compact, stream)
                                : launch<cutlass::bfloat16_t>(params, compact, stream);
}

}  // namespace vorta
