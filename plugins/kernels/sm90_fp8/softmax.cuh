// SPDX-License-Identifier: Apache-2.0
//
// The online softmax of 8-bit kernels on integer scores, with scales by chunk of 32 keys. A weight is
//
//   w = exp2(score * query_scale * key_scale + exponent - shift),
//
// where 2^exponent is the scale of the chunk's values: P V on w is the weighted sum of the values, and w * 2^-exponent
// is what counts in the sum of the weights. e4m3 has 448 at the top and steps of 2^-9 at the bottom, so a row's shift
// has to follow its weights in both directions. It rises at once where a thread's weights of a block add up to more
// than 448. lower() lets it sink where the weights of the block before are small: else a few keys far above the others
// would round all others to 0 for the rest of the row. `correction` is the factor of a new shift for the outputs so
// far; the sums are corrected here.
#ifndef VORTA_TRT_KERNELS_SM90_FP8_SOFTMAX_CUH_
#define VORTA_TRT_KERNELS_SM90_FP8_SOFTMAX_CUH_

#include "../fp8/images.h"
#include "../sm90/softmax.cuh"
#include "block_shape.h"

namespace vorta::sm90_fp8 {

using fp8::ChunkNote;
using sm90::exp2_approx;
using sm90::row_of;

/// Four weights as one register of the A operand.
__device__ inline uint32_t pack_e4m3(float a, float b, float c, float d) {
  uint32_t result;
  asm("{\n"
      ".reg .b16 low, high;\n"
      "cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n"
      "cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
      "mov.b32 %0, {low, high};\n"
      "}\n"
      : "=r"(result)
      : "f"(a), "f"(b), "f"(c), "f"(d));
  return result;
}

struct OnlineSoftmax {
  static constexpr float kLimit = 448.0f;  // of one thread's weights of one block, so of each of them
  // log2 of the largest weight with a shift just raised: low where many keys come near it, which leaves room for larger
  // ones, and high where it stands alone, which keeps the others from rounding to 0.
  static constexpr float kLeastRoom = 3.0f, kMostRoom = 8.0f;
  // A row's weights of a block that add up to less than kLow are small; a lower shift makes them kAim.
  static constexpr float kLow = 4.0f, kAim = 16.0f;
  // Blocks with a smaller share of the row's sum do not matter; this keeps outputs and sums finite, too.
  static constexpr float kLeastShare = 0x1p-20f;
  static constexpr float kLeastFactor = 1e-30f;  // times -inf has to be -inf
  // A score s below 2^22 in magnitude becomes the float kBias + s by one addition of integers, in place of a
  // conversion. The multiply-add takes kBias out again, wrong by less than one s.
  static constexpr float kBias = 12582912.0f;  // 1.5 * 2^23
  static constexpr uint32_t kBiasBits = 0x4b400000u;
  static constexpr uint32_t kMasked = 0xff800000u - kBiasBits;  // becomes -inf

  float row_factor[2];  // query_scale * scale of the logits * log2(e)
  float shift[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};     // of the weights in this thread's columns alone
  float part[2] = {};    // the same, of the current block
  float weight[2] = {};  // of the current block, as P V gets them, scale of the values included

  struct Largest {
    static __device__ float of(float a, float b) { return fmaxf(a, b); }
  };
  struct Sum {
    static __device__ float of(float a, float b) { return a + b; }
  };

  /// Combines a value over the four threads of a row.
  template <class Operation>
  static __device__ float of_row(float value) {
    value = Operation::of(value, __shfl_xor_sync(0xffffffffu, value, 1));
    return Operation::of(value, __shfl_xor_sync(0xffffffffu, value, 2));
  }

  /// Sets a new shift of a row and corrects its sum. Returns the factor for the outputs so far.
  __device__ float move_shift(int row, float to) {
    const float change = exp2_approx(shift[row] - to);  // 0 at the first block, whose shift before is -inf
    sum[row] *= change;
    shift[row] = to;
    return change;
  }

  static __device__ float biased(uint32_t score) { return __uint_as_float(score + kBiasBits); }

  __device__ float factor(int row, const ChunkNote& note) const {
    return fmaxf(row_factor[row] * note.scale, kLeastFactor);
  }

  template <int kScores>
  __device__ void weigh(const uint32_t (&scores)[kScores], const ChunkNote* notes, uint32_t (&weights)[kScores / 4]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) part[row] = weight[row] = 0.0f;
#pragma unroll
    for (int chunk = 0; chunk < kScores / 16; ++chunk) {
      const ChunkNote note = notes[chunk];
      const float multiplier[2] = {factor(0, note), factor(1, note)};
      const float offset[2] = {fmaf(-kBias, multiplier[0], note.exponent - shift[0]),
                               fmaf(-kBias, multiplier[1], note.exponent - shift[1])};
      float w[16], chain[4];
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        const float x = fmaf(biased(scores[16 * chunk + i]), multiplier[row_of(i)], offset[row_of(i)]);
        w[i] = exp2_approx(x);
        chain[i % 4] = i < 4 ? w[i] : chain[i % 4] + w[i];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* first = w + i / 2 * 8 + i % 2 * 2;  // row i % 2, keys of the lower or upper 16
        weights[4 * chunk + i] = pack_e4m3(first[0], first[1], first[4], first[5]);
      }
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const float chunk_sum = chain[2 * row] + chain[2 * row + 1];
        weight[row] += chunk_sum;
        part[row] = fmaf(chunk_sum, note.inverse, part[row]);
      }
    }
  }

  /// Whether the shift was too small for these weights, in any row of the warp; also if there is a NaN.
  __device__ bool is_exceeded() const {
    return __any_sync(0xffffffffu, !(weight[0] <= kLimit) || !(weight[1] <= kLimit));
  }

  /// Shifts by the largest weight of this block, if that is more than before.
  template <int kScores>
  __device__ void raise(const uint32_t (&scores)[kScores], const ChunkNote* notes, float (&correction)[2]) {
    constexpr int kBlockChunks = kScores / 16;
    float largest[2][kBlockChunks];  // of this thread's keys of a chunk
#pragma unroll
    for (int chunk = 0; chunk < kBlockChunks; ++chunk) {
      const ChunkNote note = notes[chunk];
      int highest[2] = {static_cast<int>(kMasked), static_cast<int>(kMasked)};
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        highest[row_of(i)] = max(highest[row_of(i)], static_cast<int>(scores[16 * chunk + i]));
      }
#pragma unroll
      for (int row = 0; row < 2; ++row) {
        const float multiplier = factor(row, note);
        largest[row][chunk] = fmaf(biased(highest[row]), multiplier, fmaf(-kBias, multiplier, note.exponent));
      }
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      float risen = largest[row][0];
#pragma unroll
      for (int chunk = 1; chunk < kBlockChunks; ++chunk) risen = fmaxf(risen, largest[row][chunk]);
      risen = of_row<Largest>(risen);
      // At least what the other keys weigh beside the largest: every eighth stands for the largest of its eight.
      float others = 0.0f;
#pragma unroll
      for (int chunk = 0; chunk < kBlockChunks; ++chunk) others += exp2_approx(largest[row][chunk] - risen);
      others = fmaxf(of_row<Sum>(others) - 1.0f, 0x1p-8f);
      const float room = fminf(fmaxf(2.0f - __log2f(others), kLeastRoom), kMostRoom);
      correction[row] = move_shift(row, fmaxf(shift[row], risen - room));
    }
  }

  /// Makes the shift of rows with small weights smaller. Between accept() of one block and weigh() of the next.
  __device__ void lower(float (&correction)[2]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float last = of_row<Sum>(weight[row]);
      const bool matters = of_row<Sum>(part[row]) > kLeastShare * of_row<Sum>(sum[row]);
      const bool sinks = last < kLow && matters;
      correction[row] = move_shift(row, sinks ? shift[row] + __log2f(last * (1.0f / kAim)) : shift[row]);
    }
  }

  /// Adds the weights of the current block to the sums.
  __device__ void accept() {
    sum[0] += part[0];
    sum[1] += part[1];
  }

  /// Divides the output by the sums; a row without keys becomes 0.
  template <int kOutputs>
  __device__ void normalize(float (&output)[kOutputs]) const {
    float inverse[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float total = of_row<Sum>(sum[row]);
      inverse[row] = total == 0.0f ? 0.0f : 1.0f / total;
    }
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) output[i] *= inverse[row_of(i)];
  }
};

}  // namespace vorta::sm90_fp8

#endif  // VORTA_TRT_KERNELS_SM90_FP8_SOFTMAX_CUH_
