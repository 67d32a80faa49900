// SPDX-License-Identifier: Apache-2.0
//
// Which tokens of a bucket stay: its centre and the keep - 1 tokens least similar to it. One warp ranks one bucket.
// Groups of 8, 16 or 32 lanes read a token each (16 bytes a lane); the dot products land in shared memory; then every
// lane counts for its tokens how many rank before them. Counting is a stable sort.
#ifndef VORTA_TRT_KERNELS_CORESET_RANKING_CUH_
#define VORTA_TRT_KERNELS_CORESET_RANKING_CUH_

#include "bucket_partition.h"
#include "cutlass/array.h"
#include "cutlass/numeric_types.h"
#include "validate.h"

namespace vorta {

constexpr int kWarpLanes = 32;
constexpr int kLaneElements = 8;      // 16 bytes of float16 or bfloat16
constexpr float kNormFloor = 1e-12f;  // of torch.nn.functional.normalize

/// Shared memory of the warp that ranks a bucket; one entry a token.
struct BucketScratch {
  alignas(16) float similarity[kMaxBucketTokens];  // read four at a time
  float dot[kMaxBucketTokens];                     // with the centre
  float square[kMaxBucketTokens];                  // with itself
  int32_t kept[kMaxBucketTokens];                  // token ids by slot
  Bucket bucket;                                   // here, since the products leave no registers for it
};

/// Adds each of the first kCount `sums` over lanes that differ in the bits below 2 * kOffset. Afterwards sums[0] of a
/// lane is the total of number owned_sum<kCount, kOffset>(lane). The additions are those of a butterfly over one sum
/// after another; halving the sums with every exchange leaves a quarter of its shuffles.
template <int kCount, int kOffset, int kSize>
__device__ __forceinline__ void scatter_sums(float (&sums)[kSize], int lane) {
  if constexpr (kOffset == 0) {
    static_assert(kCount == 1, "a group has a lane for every sum");
  } else {
    constexpr int kHalf = (kCount + 1) / 2;
    const bool upper = lane & kOffset;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      if (i + kHalf < kCount) {
        const float given = upper ? sums[i] : sums[i + kHalf];
        sums[i] = (upper ? sums[i + kHalf] : sums[i]) + __shfl_xor_sync(0xffffffffu, given, kOffset);
      } else {
        sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], kOffset);
      }
    }
    scatter_sums<kHalf, kOffset / 2>(sums, lane);
  }
}

template <int kCount, int kOffset>
__device__ __forceinline__ int owned_sum(int lane) {
  if constexpr (kOffset == 0) {
    return 0;
  } else {
    constexpr int kHalf = (kCount + 1) / 2;
    const int owned = owned_sum<kHalf, kOffset / 2>(lane);
    return (lane & kOffset) && owned + kHalf < kCount ? owned + kHalf : owned;
  }
}

/// Dot products of each token of a bucket with the token `centre` and with itself, to `scratch`. `bucket` is the row
/// of the bucket's first token, `offsets` are the other tokens' ids relative to it; kWidth lanes read one token.
template <class Element, int kWidth>
__device__ __forceinline__ void bucket_products(const Element* bucket, int64_t token_stride, int head_dim,
                                                const int32_t* offsets, int bucket_tokens, int centre,
                                                BucketScratch& scratch) {
  constexpr int kGroups = kWarpLanes / kWidth;
  // In flight at once: the 12 tokens of the published buckets, unless that were more than 24 registers of rows.
  constexpr int kLoads = kGroups == 4 ? 3 : 6;
  using Row = cutlass::Array<Element, kLaneElements>;
  static_assert(sizeof(Row) == sizeof(uint4));
  const int lane = threadIdx.x % kWarpLanes;
  const int column = lane % kWidth * kLaneElements;
  const auto load = [&](int inside) {
    uint4 bits = {};
    if (column < head_dim)
      bits = __ldg(reinterpret_cast<const uint4*>(bucket + offsets[inside] * token_stride + column));
    return bits;
  };

  const uint4 centre_bits = load(centre);
#pragma unroll 1
  for (int first = 0; first < bucket_tokens; first += kLoads * kGroups) {
    uint4 bits[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      // All lanes take part in the exchange: past the end they read the last token once more.
      bits[i] = load(min(first + i * kGroups + lane / kWidth, bucket_tokens - 1));
    }
    const Row& c = reinterpret_cast<const Row&>(centre_bits);
    float sums[2 * kLoads] = {};  // dot products, then squares
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      const Row& x = reinterpret_cast<const Row&>(bits[i]);
#pragma unroll
      for (int j = 0; j < kLaneElements; ++j) {
        const float value = static_cast<float>(x[j]);
        sums[i] += static_cast<float>(c[j]) * value;
        sums[kLoads + i] += value * value;
      }
    }
    scatter_sums<2 * kLoads, kWidth / 2>(sums, lane);
    const int owned = owned_sum<2 * kLoads, kWidth / 2>(lane);
    const int inside = first + owned % kLoads * kGroups + lane / kWidth;
    if (inside < bucket_tokens) (owned < kLoads ? scratch.dot : scratch.square)[inside] = sums[0];
  }
}

/// Cosine similarities from the products, x/|x| . c/|c|. A NaN ranks last, as in torch.sort, so that the ranks stay a
/// permutation; the centre and the entries that fill up a group of four are NaN and rank before nobody.
__device__ __forceinline__ void bucket_similarities(int bucket_tokens, int centre, BucketScratch& scratch) {
  const float centre_norm = fmaxf(sqrtf(scratch.square[centre]), kNormFloor);
  for (int inside = threadIdx.x % kWarpLanes; inside < (bucket_tokens + 3) / 4 * 4; inside += kWarpLanes) {
    float similarity = NAN;
    if (inside < bucket_tokens && inside != centre) {
      similarity = scratch.dot[inside] / centre_norm / fmaxf(sqrtf(scratch.square[inside]), kNormFloor);
      if (isnan(similarity)) similarity = INFINITY;
    }
    scratch.similarity[inside] = similarity;
  }
}

/// How many tokens rank before `inside`: less similar to the centre, or as similar and of a lower index.
__device__ __forceinline__ int stable_rank(const BucketScratch& scratch, int bucket_tokens, int inside) {
  const float own = scratch.similarity[inside];
  int rank = 0;
  for (int first = 0; first < bucket_tokens; first += 4) {
    const float4 four = *reinterpret_cast<const float4*>(scratch.similarity + first);
    rank += first + 0 < inside ? four.x <= own : four.x < own;
    rank += first + 1 < inside ? four.y <= own : four.y < own;
    rank += first + 2 < inside ? four.z <= own : four.z < own;
    rank += first + 3 < inside ? four.w <= own : four.w < own;
  }
  return rank;
}

}  // namespace vorta

#endif  // VORTA_TRT_KERNELS_CORESET_RANKING_CUH_
