// SPDX-License-Identifier: Apache-2.0
//
// The coreset: of every bucket its centre and the keep - 1 tokens least similar to it stay, the rest is dropped.
// One warp ranks one bucket: groups of 8, 16 or 32 lanes read a token each (16 bytes a lane), the cosine similarities
// land in shared memory, then every lane counts for its tokens how many rank before them. Counting is a stable sort.
#include "coreset_selection.h"
#include "cutlass/array.h"
#include "cutlass/numeric_types.h"
#include "validate.h"

namespace vorta {
namespace {

constexpr int kWarps = 8;             // buckets of a block; 256 threads fill an SM with 8 blocks
constexpr int kLaneElements = 8;      // 16 bytes of float16 or bfloat16
constexpr float kNormFloor = 1e-12f;  // of torch.nn.functional.normalize

/// Which tensor is ranked and where its lists go; `dropped` is null where nobody reads it.
struct SelectionTarget {
  TensorView tokens;
  int32_t* kept;
  int32_t* dropped;
};

template <class Element>
__device__ cutlass::Array<float, kLaneElements> load_lane(const Element* token, int column, int head_dim) {
  cutlass::Array<float, kLaneElements> values;
  values.clear();
  if (column < head_dim) {
    const auto raw = *reinterpret_cast<const cutlass::AlignedArray<Element, kLaneElements>*>(token + column);
#pragma unroll
    for (int i = 0; i < kLaneElements; ++i) values[i] = static_cast<float>(raw[i]);
  }
  return values;
}

/// Sum over the `width` lanes of a group, the same in each of them.
__device__ float group_sum(float value, int width) {
  for (int offset = width / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(0xffffffffu, value, offset);
  return value;
}

/// Cosine similarity of each token of the bucket at `position` with the token `centre`, to `similarity`.
template <class Element>
__device__ void bucket_similarities(const BoxPartition& buckets, const int (&position)[3], int centre,
                                    const Element* tokens, int64_t token_stride, int head_dim, float* similarity) {
  const int lane = threadIdx.x % 32;
  const int width = head_dim <= 64 ? 8 : (head_dim <= 128 ? 16 : 32);  // lanes of a group
  const int column = lane % width * kLaneElements;

  const auto c = load_lane(tokens + buckets.token(position, centre) * token_stride, column, head_dim);
  float centre_square = 0.0f;
#pragma unroll
  for (int i = 0; i < kLaneElements; ++i) centre_square += c[i] * c[i];
  const float centre_norm = fmaxf(sqrtf(group_sum(centre_square, width)), kNormFloor);

  const int bucket_tokens = buckets.tokens.divisor;
#pragma unroll 2
  for (int first = 0; first < bucket_tokens; first += 32 / width) {
    const int inside = first + lane / width;
    const int clamped = min(inside, bucket_tokens - 1);  // all lanes take part in the shuffles
    const auto x = load_lane(tokens + buckets.token(position, clamped) * token_stride, column, head_dim);
    float dot = 0.0f, square = 0.0f;
#pragma unroll
    for (int i = 0; i < kLaneElements; ++i) {
      dot += c[i] * x[i];
      square += x[i] * x[i];
    }
    dot = group_sum(dot, width);
    square = group_sum(square, width);
    if (inside < bucket_tokens && lane % width == 0) {
      // x/|x| . c/|c|; a NaN ranks last, as in torch.sort, so that the ranks stay a permutation.
      const float cosine = dot / centre_norm / fmaxf(sqrtf(square), kNormFloor);
      similarity[inside] = isnan(cosine) ? INFINITY : cosine;
    }
  }
}

/// How many tokens but the centre rank before `inside`: less similar, or as similar and of a lower index.
__device__ int stable_rank(const float* similarity, int bucket_tokens, int centre, int inside) {
  int rank = 0;
  for (int other = 0; other < bucket_tokens; ++other) {
    const bool before =
        similarity[other] < similarity[inside] || (similarity[other] == similarity[inside] && other < inside);
    rank += other != centre && before;
  }
  return rank;
}

template <class Element>
__device__ void select_bucket(const RoutedAttentionParams& params, const SelectionTarget& target, int bucket,
                              float* similarity) {
  const BoxPartition& buckets = params.buckets;
  const int bucket_tokens = buckets.tokens.divisor;
  const int keep = params.keep.divisor;
  int position[3];
  buckets.split(bucket, position);
  const int (&extent)[3] = buckets.extent;
  const int centre = (extent[0] / 2 * extent[1] + extent[1] / 2) * extent[2] + extent[2] / 2;

  const auto* tokens = static_cast<const Element*>(target.tokens.data) + blockIdx.z * target.tokens.batch_stride +
                       blockIdx.y * target.tokens.head_stride;
  bucket_similarities(buckets, position, centre, tokens, target.tokens.token_stride, params.head_dim, similarity);
  __syncwarp();

  const int64_t head = int64_t{blockIdx.z} * params.heads + blockIdx.y;
  int32_t* kept = target.kept + head * params.kept_tokens + int64_t{bucket} * keep;
  for (int inside = threadIdx.x % 32; inside < bucket_tokens; inside += 32) {
    // The centre takes slot 0, the others follow by rank.
    const int slot = inside == centre ? 0 : 1 + stable_rank(similarity, bucket_tokens, centre, inside);
    const int token = buckets.token(position, inside);
    if (slot < keep) {
      kept[slot] = token;
    } else if (target.dropped != nullptr) {
      const int dropped_tokens = params.video_tokens - params.kept_tokens;  // of a head
      target.dropped[head * dropped_tokens + int64_t{bucket} * (bucket_tokens - keep) + slot - keep] = token;
    }
  }
}

/// Grid (buckets / kWarps, N, B).
template <class Element>
__global__ void __launch_bounds__(32 * kWarps)
    coreset_selection_kernel(const __grid_constant__ RoutedAttentionParams params) {
  __shared__ float similarities[kWarps][kMaxBucketTokens];
  if (params.routes[int64_t{blockIdx.z} * params.heads + blockIdx.y] != VORTA_CORESET) return;
  const int warp = threadIdx.x / 32;
  const int bucket = blockIdx.x * kWarps + warp;
  if (bucket >= params.buckets.count()) return;  // whole warps only

  select_bucket<Element>(params, {params.query, params.kept_queries, params.dropped_queries}, bucket,
                         similarities[warp]);
  if (params.kept_keys != params.kept_queries) {
    __syncwarp();  // the ranks above still read the similarities
    select_bucket<Element>(params, {params.key, params.kept_keys, nullptr}, bucket, similarities[warp]);
  }
}

template <class Element>
cudaError_t launch(const RoutedAttentionParams& params, cudaStream_t stream) {
  const dim3 grid((params.buckets.count() + kWarps - 1) / kWarps, params.heads, params.batch);
  coreset_selection_kernel<Element><<<grid, 32 * kWarps, 0, stream>>>(params);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_coreset_selection(const RoutedAttentionParams& params, vorta_dtype dtype, cudaStream_t stream) {
  return dtype == VORTA_FLOAT16 ? launch<cutlass::half_t>(params, stream) : launch<cutlass::bfloat16_t>(params, stream);
}

}  // namespace vorta
