// SPDX-License-Identifier: Apache-2.0
//
// Online softmax (Milakov and Gimelshein 2018) in fp32 and base 2 on a wgmma accumulator: a thread owns a quarter of
// the columns of two rows, 8 apart; the other quarters lie in the neighbouring three lanes.
#ifndef VORTA_TRT_KERNELS_SM90_SOFTMAX_CUH_
#define VORTA_TRT_KERNELS_SM90_SOFTMAX_CUH_

#include <cstdint>

#include "cutlass/numeric_types.h"

namespace vorta::sm90 {

/// One instruction; relative error 2^-22, and exp2(-inf) = 0.
__device__ inline float exp2_approx(float value) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
  return result;
}

/// Rounds two numbers into one register, `low` first.
template <class Element>
__device__ uint32_t pack(float low, float high) {
  uint32_t result;
  if constexpr (std::is_same_v<Element, cutlass::bfloat16_t>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  }
  return result;
}

/// The row, 0 or 1 of the thread's two, of accumulator element i.
__device__ constexpr int row_of(int i) { return i / 2 % 2; }

/// Takes columns from `valid` on out of the softmax.
template <int kScores>
__device__ void mask_columns(float (&scores)[kScores], int valid) {
  const int limit = valid - 2 * (threadIdx.x % 4);  // of the column's part that is known when compiling
#pragma unroll
  for (int i = 0; i < kScores; ++i) {
    if (8 * (i / 4) + i % 2 >= limit) scores[i] = -INFINITY;
  }
}

/// The shift of a row's scores follows the row's maximum only when it has to. Weights are exp2(score * scale -
/// shift), and any shift gives the same quotient of output and sum as long as nothing overflows or vanishes: floating
/// point rounds large and small weights alike. So the maximum is looked for in the first blocks of keys, and again
/// where the weights of a block are large beside those so far; the others are spared the search, its latency and the
/// multiplication of the output. Beside those so far, because the one weight that is not rounded is that of the
/// maximum, 1: that shows where few keys share the weight.
struct OnlineSoftmax {
  static constexpr int kChains =
      4;  // of dependent instructions, to hide their latency; a multiple of row_of()'s period
  // One thread's weights of one block may add up to limit() + kShare * those so far, and to kMost.
  static constexpr float kShare = 0.125f;
  static constexpr float kMost = 1024.0f;  // fp16 ends at 65,504

  float scale_log2;  // of the logits, times log2(e); positive
  float shift[2];
  float sum[2];   // of the weights in this thread's columns alone
  float part[2];  // the same, of the current block

  __device__ explicit OnlineSoftmax(float scale) : scale_log2(scale), shift{-INFINITY, -INFINITY}, sum{}, part{} {}

  /// weights = exp2(scores * scale - shift) for kCount scores from kFirst on, rounded in pairs; their sum before that
  /// is put into `part`, or added to it.
  template <class Element, int kFirst, int kCount, bool kAdd, int kScores>
  __device__ void weigh(const float (&scores)[kScores], uint32_t (&weights)[kCount / 2]) {
    float chain[kChains] = {};
#pragma unroll
    for (int i = 0; i < kCount; i += 2) {
      const float low = exp2_approx(scores[kFirst + i] * scale_log2 - shift[row_of(i)]);
      const float high = exp2_approx(scores[kFirst + i + 1] * scale_log2 - shift[row_of(i)]);
      weights[i / 2] = pack<Element>(low, high);
      chain[i % kChains] += low;
      chain[(i + 1) % kChains] += high;
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      if (!kAdd) part[row] = 0.0f;
#pragma unroll
      for (int i = 0; i < kChains; ++i) {
        if (row_of(i) == row) part[row] += chain[i];
      }
    }
  }

  /// The limit for a row with so many blocks of keys: the fewer there are, the larger is the share of one large weight.
  static __device__ float limit(int key_blocks) { return fminf(0.25f * key_blocks, 16.0f); }

  /// Whether the shift was too small for these weights, in any row of the warp; also if there is a NaN.
  __device__ bool is_exceeded(int key_blocks) const {
    const float least = limit(key_blocks);
    const auto exceeds = [&](int row) { return !(part[row] <= fminf(fmaf(sum[row], kShare, least), kMost)); };
    return __any_sync(0xffffffffu, exceeds(0) || exceeds(1));
  }

  /// Raises the shift to the largest score so far. The older sums are corrected here; `correction` receives the factor
  /// by which the caller has to multiply the older outputs.
  template <int kScores>
  __device__ void raise(const float (&scores)[kScores], float (&correction)[2]) {
    static_assert(kScores % kChains == 0, "every chain gets as many scores");
    float highest[kChains];
#pragma unroll
    for (int i = 0; i < kChains; ++i) highest[i] = scores[i];
#pragma unroll
    for (int i = kChains; i < kScores; ++i) highest[i % kChains] = fmaxf(highest[i % kChains], scores[i]);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float risen = -INFINITY;
#pragma unroll
      for (int i = 0; i < kChains; ++i) {
        if (row_of(i) == row) risen = fmaxf(risen, highest[i]);
      }
      risen = fmaxf(risen, __shfl_xor_sync(0xffffffffu, risen, 1));
      risen = fmaxf(risen, __shfl_xor_sync(0xffffffffu, risen, 2));
      const float before = shift[row];
      shift[row] = fmaxf(before, risen * scale_log2);
      // A row that has seen no finite score keeps weights of exp2(-inf) = 0, not exp2(-inf + inf) = NaN.
      if (shift[row] == -INFINITY) shift[row] = 0.0f;
      correction[row] = exp2_approx(before - shift[row]);
      sum[row] *= correction[row];
    }
  }

  /// Raises the shift at the first block, where there are no older outputs.
  template <int kScores>
  __device__ void raise(const float (&scores)[kScores]) {
    float correction[2];
    raise(scores, correction);
  }

  /// Adds the weights of the current block to the sums.
  __device__ void accept() {
    sum[0] += part[0];
    sum[1] += part[1];
  }

  /// Begins a new row. `inverse`: what the old row's output is to be multiplied by, 0 for a row without keys.
  __device__ void restart(float (&inverse)[2]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float total = sum[row] + __shfl_xor_sync(0xffffffffu, sum[row], 1);
      total += __shfl_xor_sync(0xffffffffu, total, 2);
      inverse[row] = total == 0.0f ? 0.0f : 1.0f / total;
      sum[row] = 0.0f;
      shift[row] = -INFINITY;
    }
  }
};

}  // namespace vorta::sm90

#endif  // VORTA_TRT_KERNELS_SM90_SOFTMAX_CUH_
