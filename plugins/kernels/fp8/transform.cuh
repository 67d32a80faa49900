// SPDX-License-Identifier: Apache-2.0
//
// Rows of Q and K on their way to int8: every channel times its factor, plus its offset, then the Hadamard matrix. A
// warp takes eight rows at a time, four lanes each. A factor of 8 of the matrix is left to the tensor cores, which
// contract over four lanes and two channels of each at once; the other axes lie within a lane. Numbers between are
// bfloat16, which rounds by a quarter of what int8 does.
#ifndef VORTA_TRT_KERNELS_FP8_TRANSFORM_CUH_
#define VORTA_TRT_KERNELS_FP8_TRANSFORM_CUH_

#include "elements.cuh"
#include "images.h"

namespace vorta::fp8 {

template <class Element, int kHeadDim>
class RowTransform {
 public:
  static constexpr int kRows = 8;                // at a time; lane / 4 is the row of a lane
  static constexpr int kRowLanes = 4;            // lane % 4 is its part of the row
  static constexpr int kPieces = kHeadDim / 32;  // of 8 channels that a lane has
  static constexpr int kPieceStride = 32;
  static constexpr int kPairs = kHeadDim / 8;         // of outputs of a lane
  static constexpr int kImagePieces = kHeadDim / 64;  // of 16 bytes of int8 that a lane writes
  /// The transformed product of a row of Q and one of K is kHeadDim times the product.
  static constexpr float kProductFactor = 1.0f / kHeadDim;

  explicit __device__ RowTransform(unsigned lane) : part_(lane % kRowLanes) {
    const unsigned row = lane % 4 * 2, column = lane / 4;
    const auto entry = [&](unsigned k) { return __popc(k & column) % 2 ? 0xbf80u : 0x3f80u; };  // -1 or 1 in bfloat16
    matrix_ = entry(row) | entry(row + 1) << 16;
  }

  /// A lane's pieces start at this channel and stand `kPieceStride` apart.
  __device__ unsigned first_channel() const { return part_ * 8; }

  /// The 16-byte piece of an image row that a lane's pairs from 8 `piece` on become.
  __device__ int image_piece(int piece) const { return part_ * kImagePieces + piece; }

  /// words: the lane's pieces of its row; the row's outputs, pairs of bfloat16, stay in its lanes. `factor` and
  /// `offset` start at the lane's first channel; `offset` may be null, which is 0, as it is for rows that do not exist.
  __device__ void operator()(const uint4 (&words)[kPieces], const uint16_t* factor, const uint16_t* offset, bool exists,
                             uint32_t (&pairs)[kPairs]) const {
    uint32_t x[kPieces][4];
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const uint4 f = *reinterpret_cast<const uint4*>(factor + piece * kPieceStride);
      const uint4& word = words[piece];
      if (offset == nullptr) {
        x[piece][0] = scale<Element>(word.x, f.x);
        x[piece][1] = scale<Element>(word.y, f.y);
        x[piece][2] = scale<Element>(word.z, f.z);
        x[piece][3] = scale<Element>(word.w, f.w);
        continue;
      }
      uint4 o{};
      if (exists) o = *reinterpret_cast<const uint4*>(offset + piece * kPieceStride);
      x[piece][0] = scale_and_shift<Element>(word.x, f.x, o.x);
      x[piece][1] = scale_and_shift<Element>(word.y, f.y, o.y);
      x[piece][2] = scale_and_shift<Element>(word.z, f.z, o.z);
      x[piece][3] = scale_and_shift<Element>(word.w, f.w, o.w);
    }
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      add_and_subtract(x[piece][0], x[piece][1]);
      add_and_subtract(x[piece][2], x[piece][3]);
      add_and_subtract(x[piece][0], x[piece][2]);
      add_and_subtract(x[piece][1], x[piece][3]);
    }
#pragma unroll
    for (int stride = 1; stride < kPieces; stride *= 2) {
#pragma unroll
      for (int piece = 0; piece < kPieces; ++piece) {
        if (piece & stride) continue;
#pragma unroll
        for (int w = 0; w < 4; ++w) add_and_subtract(x[piece][w], x[piece + stride][w]);
      }
    }
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
#pragma unroll
      for (int w = 0; w < 4; w += 2) multiply(pairs + 4 * piece + w, x[piece][w], x[piece][w + 1]);
    }
  }

 private:
  static __device__ void add_and_subtract(uint32_t& a, uint32_t& b) {
    const auto pair_a = *reinterpret_cast<const __nv_bfloat162*>(&a);
    const auto pair_b = *reinterpret_cast<const __nv_bfloat162*>(&b);
    const __nv_bfloat162 sum = __hadd2(pair_a, pair_b), difference = __hsub2(pair_a, pair_b);
    a = *reinterpret_cast<const uint32_t*>(&sum);
    b = *reinterpret_cast<const uint32_t*>(&difference);
  }

  /// Two pairs of the lane's channels, each multiplied with the matrix over eight channels of four lanes.
  __device__ void multiply(uint32_t* result, uint32_t first, uint32_t second) const {
    float y[4];
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %7, %7, %7};\n"
        : "=f"(y[0]), "=f"(y[1]), "=f"(y[2]), "=f"(y[3])
        : "r"(first), "r"(second), "r"(matrix_), "f"(0.0f));
    result[0] = pack_bf16(y[0], y[1]);
    result[1] = pack_bf16(y[2], y[3]);
  }

  unsigned part_;    // of the row
  uint32_t matrix_;  // of Hadamard, 8 x 8: a B operand
};

}  // namespace vorta::fp8

#endif  // VORTA_TRT_KERNELS_FP8_TRANSFORM_CUH_
