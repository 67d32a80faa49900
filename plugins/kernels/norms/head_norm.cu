// SPDX-License-Identifier: Apache-2.0
//
// HeadNorm and QKNormRotary: RMS norms over tokens or heads, and the rotation of queries and keys, in one pass over
// memory.
#include "kernel_launch.h"
#include "rows.cuh"

namespace vorta::norms {
namespace {

/// The elements over which squares are added up.
enum class Mean {
  kRow,          // over all features of a token
  kHeadOfLanes,  // over a head whose vectors are a power of two: they lie in one warp
  kHead          // over any other head
};

/// Rows that a block holds of each tensor. More share their weights, but wait for one another: slower on an H100 with a
/// rotation, and as fast without.
constexpr int kRows = 1;

template <class Element>
__device__ __forceinline__ Floats load_weight(const void* weight, bool is_float32, int vector) {
  if (is_float32) return load_floats(static_cast<const float*>(weight) + vector * kVector);
  return unpack<Element>(__ldg(static_cast<const uint4*>(weight) + vector));
}

/// Four pairs (even, odd) by their angles.
__device__ __forceinline__ Floats rotate(const Floats& x, const float4& cos, const float4& sin) {
  const float c[4] = {cos.x, cos.y, cos.z, cos.w}, s[4] = {sin.x, sin.y, sin.z, sin.w};
  Floats rotated;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float even = x.at[2 * i], odd = x.at[2 * i + 1];
    rotated.at[2 * i] = even * c[i] - odd * s[i];
    rotated.at[2 * i + 1] = even * s[i] + odd * c[i];
  }
  return rotated;
}

/// Replaces each of `squares` by its sum over the row or the head, as kMean says. `room`: for kHead, a float for each
/// vector of a row.
template <Mean kMean, int kCount>
__device__ __forceinline__ void add_squares(const HeadNormCall& call, float (&squares)[kCount][kVectors],
                                            ReductionRoom<kCount>& of_warps, float* room) {
  if constexpr (kMean == Mean::kRow) {
    float sums[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      sums[i] = squares[i][0];
#pragma unroll
      for (int v = 1; v < kVectors; ++v) sums[i] += squares[i][v];
    }
    reduce_block<Sum>(sums, of_warps);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) squares[i][v] = sums[i];
    }
  } else if constexpr (kMean == Mean::kHeadOfLanes) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) reduce_lanes<Sum>(squares[i], call.head_vectors);
  } else {
    const int row_vectors = call.shape.vectors;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i > 0) __syncthreads();  // the row before is read
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int vector = v * blockDim.x + threadIdx.x;
        if (vector < row_vectors) room[vector] = squares[i][v];
      }
      __syncthreads();
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int vector = v * blockDim.x + threadIdx.x;
        if (vector >= row_vectors) continue;
        const int first = vector / call.head_vectors * call.head_vectors;
        float sum = 0.0f;
        for (int j = 0; j < call.head_vectors; ++j) sum += room[first + j];
        squares[i][v] = sum;
      }
    }
  }
}

/// kTensors: 2 with a rotation, 1 without.
template <class Element, Mean kMean, int kTensors>
__global__ void __launch_bounds__(kMaxThreads) head_norm_kernel(const __grid_constant__ HeadNormCall call) {
  constexpr bool kRotates = kTensors == 2;
  __shared__ ReductionRoom<kTensors * kRows> of_warps;
  __shared__ float of_vectors[kMean == Mean::kHead ? kMaxFeatures / kVector : 1];
  const RowShape& shape = call.shape;
  Place places[kRows];
  locate_rows(shape, places);
  uint4 words[kTensors][kRows][kVectors];
#pragma unroll
  for (int t = 0; t < kTensors; ++t) load_rows(shape, places, call.tensors[t].input, words[t]);

  float factor[kTensors * kRows][kVectors];
#pragma unroll
  for (int t = 0; t < kTensors; ++t) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const Floats x = unpack<Element>(words[t][r][v]);  // zeros beyond the row
        float& sum = factor[t * kRows + r][v] = 0.0f;
#pragma unroll
        for (int i = 0; i < kVector; ++i) sum = fmaf(x.at[i], x.at[i], sum);
      }
    }
  }
  add_squares<kMean>(call, factor, of_warps, of_vectors);
  const int mean_vectors = kMean == Mean::kRow ? shape.vectors : call.head_vectors;
  const float one_by_length = 1.0f / (mean_vectors * kVector);

#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int vector = v * blockDim.x + threadIdx.x;
    if (vector >= shape.vectors) continue;
    const int of_head = vector % call.head_vectors;
    Floats weight[kTensors];
#pragma unroll
    for (int t = 0; t < kTensors; ++t) {
      const int of_weight = kMean == Mean::kRow ? vector : of_head;
      weight[t] = load_weight<Element>(call.tensors[t].weight, call.weight_float32, of_weight);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (!places[r].exists) continue;
      float4 cos{}, sin{};
      if constexpr (kRotates) {
        const int64_t pair = int64_t{places[r].token} * call.head_vectors + of_head;  // in units of four pairs
        cos = __ldg(reinterpret_cast<const float4*>(call.cos) + pair);
        sin = __ldg(reinterpret_cast<const float4*>(call.sin) + pair);
      }
#pragma unroll
      for (int t = 0; t < kTensors; ++t) {
        const float root = rsqrtf(fmaf(factor[t * kRows + r][v], one_by_length, shape.epsilon));
        Floats x = unpack<Element>(words[t][r][v]);
#pragma unroll
        for (int i = 0; i < kVector; ++i) x.at[i] *= root * weight[t].at[i];
        if constexpr (kRotates) x = rotate(x, cos, sin);
        const RowTensor& output = call.tensors[t].output;
        output.data[places[r].offset(output) + vector] = pack<Element>(x);
      }
    }
  }
}

template <class Element, Mean kMean, int kTensors>
cudaError_t launch(const HeadNormCall& call, cudaStream_t stream) {
  return launch_rows<kRows>(head_norm_kernel<Element, kMean, kTensors>, call, stream);
}

template <class Element, int kTensors>
cudaError_t launch(const HeadNormCall& call, cudaStream_t stream) {
  if (!call.per_head) return launch<Element, Mean::kRow, kTensors>(call, stream);
  const bool power_of_two = (call.head_vectors & (call.head_vectors - 1)) == 0;
  return power_of_two ? launch<Element, Mean::kHeadOfLanes, kTensors>(call, stream)
                      : launch<Element, Mean::kHead, kTensors>(call, stream);
}

template <class Element>
cudaError_t launch(const HeadNormCall& call, cudaStream_t stream) {
  return call.cos != nullptr ? launch<Element, 2>(call, stream) : launch<Element, 1>(call, stream);
}

}  // namespace

cudaError_t launch_head_norm(const HeadNormCall& call, vorta_dtype dtype, cudaStream_t stream) {
  return dtype == VORTA_FLOAT16 ? launch<__half>(call, stream) : launch<__nv_bfloat16>(call, stream);
}

}  // namespace vorta::norms
