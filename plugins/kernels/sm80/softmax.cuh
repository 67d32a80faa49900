// SPDX-License-Identifier: Apache-2.0
//
// Online softmax over the keys (Milakov and Gimelshein 2018; FlashAttention), in fp32 and base 2. A thread owns kRows
// query rows and a quarter of their columns; the other quarters lie in the neighbouring three lanes.
#ifndef VORTA_TRT_KERNELS_SOFTMAX_CUH_
#define VORTA_TRT_KERNELS_SOFTMAX_CUH_

#include "cute/tensor.hpp"

namespace vorta::sm80 {

/// One instruction; relative error 2^-22, and exp2(-inf) = 0.
__device__ inline float exp2_approx(float value) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

/// Combines the values of the four lanes that share a row.
template <class Combine>
__device__ float quad_reduce(float value, Combine combine) {
  value = combine(value, __shfl_xor_sync(0xffffffffu, value, 2));
  return combine(value, __shfl_xor_sync(0xffffffffu, value, 1));
}

template <int kRows>
struct OnlineSoftmax {
  float scale_log2;      // of the logits, times log2(e); positive
  float maximum[kRows];  // of the raw scores seen so far
  float sum[kRows];      // of exp2 over this thread's columns alone

  __device__ explicit OnlineSoftmax(float scale_log2_) : scale_log2(scale_log2_) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      maximum[row] = -INFINITY;
      sum[row] = 0.0f;
    }
  }

  /// scores [rows, columns] become exp2((score - maximum) * scale); output [rows, D] follows a risen maximum.
  template <class Scores, class Output>
  __device__ void update(Scores& scores, Output& output) {
    using namespace cute;
#pragma unroll
    for (int row = 0; row < size<0>(scores); ++row) {
      float risen = maximum[row];
#pragma unroll
      for (int column = 0; column < size<1>(scores); ++column) risen = fmaxf(risen, scores(row, column));
      risen = quad_reduce(risen, [](float a, float b) { return fmaxf(a, b); });
      // A row that has seen no key keeps weights of exp2(-inf) = 0, not exp2(-inf + inf) = NaN.
      const float shift = risen == -INFINITY ? 0.0f : risen * scale_log2;
      const float correction = exp2_approx(maximum[row] * scale_log2 - shift);
      maximum[row] = risen;

      float row_sum = sum[row] * correction;
#pragma unroll
      for (int column = 0; column < size<1>(scores); ++column) {
        scores(row, column) = exp2_approx(scores(row, column) * scale_log2 - shift);
        row_sum += scores(row, column);
      }
      sum[row] = row_sum;
#pragma unroll
      for (int column = 0; column < size<1>(output); ++column) output(row, column) *= correction;
    }
  }

  /// Divides output [rows, D] by the sums; a row without keys becomes 0.
  template <class Output>
  __device__ void normalize(Output& output) {
    using namespace cute;
#pragma unroll
    for (int row = 0; row < size<0>(output); ++row) {
      const float total = quad_reduce(sum[row], [](float a, float b) { return a + b; });
      const float inverse = total == 0.0f ? 0.0f : 1.0f / total;  // NaN stays NaN
#pragma unroll
      for (int column = 0; column < size<1>(output); ++column) output(row, column) *= inverse;
    }
  }
};

}  // namespace vorta::sm80

#endif  // VORTA_TRT_KERNELS_SOFTMAX_CUH_
