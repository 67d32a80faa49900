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
  float scale_log2;         // of the logits, times log2(e); positive
  float maximum[kRows];     // of the raw scores seen so far
  float sum[kRows];         // of exp2 over this thread's columns alone
  float correction[kRows];  // of what was summed before the maximum last rose

  __device__ explicit OnlineSoftmax(float scale_log2_) : scale_log2(scale_log2_) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      maximum[row] = -INFINITY;
      sum[row] = 0.0f;
    }
  }

  /// Raises the maxima to those of scores [rows, columns]; output [rows, D] follows.
  template <class Scores, class Output>
  __device__ void raise(const Scores& scores, Output& output) {
    using namespace cute;
#pragma unroll
    for (int row = 0; row < size<0>(scores); ++row) {
      float risen = maximum[row];
#pragma unroll
      for (int column = 0; column < size<1>(scores); ++column) risen = fmaxf(risen, scores(row, column));
      risen = quad_reduce(risen, [](float a, float b) { return fmaxf(a, b); });
      correction[row] = exp2_approx(maximum[row] * scale_log2 - shift_of(risen));
      maximum[row] = risen;
#pragma unroll
      for (int column = 0; column < size<1>(output); ++column) output(row, column) *= correction[row];
    }
  }

  /// Columns kFirst to kFirst + kCount - 1 of scores become exp2((score - maximum) * scale). In the order of columns.
  template <int kFirst, int kCount, class Scores>
  __device__ void weigh(Scores& scores) {
    using namespace cute;
#pragma unroll
    for (int row = 0; row < size<0>(scores); ++row) {
      const float shift = shift_of(maximum[row]);
      float row_sum = kFirst == 0 ? sum[row] * correction[row] : sum[row];
#pragma unroll
      for (int column = kFirst; column < kFirst + kCount; ++column) {
        scores(row, column) = exp2_approx(scores(row, column) * scale_log2 - shift);
        row_sum += scores(row, column);
      }
      sum[row] = row_sum;
    }
  }

  /// A row that has seen no key keeps weights of exp2(-inf) = 0, not exp2(-inf + inf) = NaN.
  __device__ float shift_of(float of) const { return of == -INFINITY ? 0.0f : of * scale_log2; }

  /// Stores the sums in shared memory during a product that needs their registers; the next function loads them again.
  __device__ void park_sums(float (&parked)[kRows]) const {
#pragma unroll
    for (int row = 0; row < kRows; ++row) parked[row] = sum[row];
  }
  __device__ void take_sums(const float (&parked)[kRows]) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) sum[row] = parked[row];
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
