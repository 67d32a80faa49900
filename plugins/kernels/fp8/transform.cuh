// SPDX-License-Identifier: Apache-2.0
//
// Rows of Q and K on their way to int8: every channel times its factor, plus its offset, then the Hadamard matrix. A
// warp takes eight rows at a time, four lanes each. A factor of 16 of the matrix is left to the tensor cores, which
// contract over four lanes and four channels of each at once; the other axes lie within a lane. Numbers between are
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

  explicit __device__ RowTransform(int lane) : part_(lane % kRowLanes) {
    const int row = lane % 4 * 2, column = lane / 4;
    const auto entry = [&](int k) { return __popc(k & column) % 2 ? 0xbf80u : 0x3f80u; };  // -1 or 1 in bfloat16
    matrix_ = entry(row) | entry(row + 1) << 16;
  }

  /// A lane's pieces start at this channel and stand `kPieceStride` apart.
  __device__ int first_channel() const { return part_ * 8; }

  /// The 16-byte piece of an image row that a lane's pairs from 8 `piece` on become.
  __device__ int image_piece(int piece) const { return part_ * kImagePieces + piece; }

  /// words: the lane's pieces of its row; the row's outputs, pairs of bfloat16, stay in its lanes. `offset` may be
  /// null, which is 0, as it is for rows that do not exist.
  __device__ void operator()(const uint4 (&words)[kPieces], const uint16_t* factor, const uint16_t* offset, bool exists,
                             uint32_t (&pairs)[kPairs]) const {
    uint32_t x[kPieces][4];
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      const uint4 f = *reinterpret_cast<const uint4*>(factor + piece * kPieceStride);
      uint4 o{};
      if (offset != nullptr && exists) o = *reinterpret_cast<const uint4*>(offset + piece * kPieceStride);
      x[piece][0] = scale_and_shift<Element>(words[piece].x, f.x, o.x);
      x[piece][1] = scale_and_shift<Element>(words[piece].y, f.y, o.y);
      x[piece][2] = scale_and_shift<Element>(words[piece].z, f.z, o.z);
      x[piece][3] = scale_and_shift<Element>(words[piece].w, f.w, o.w);
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
      multiply(pairs + 4 * piece, x[piece], matrix_, matrix_);
      multiply(pairs + 4 * piece + 2, x[piece], matrix_, matrix_ ^ kMinus);
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

  /// The products with a 16 x 8 operand whose upper and lower halves are given: result[0] of the sums of the lane's
  /// first and last four channels, result[1] of their differences.
  static __device__ void multiply(uint32_t* result, const uint32_t (&x)[4], uint32_t upper, uint32_t lower) {
    float first[2], last[2];
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%10, %10, %10, %10};\n"
        : "=f"(first[0]), "=f"(first[1]), "=f"(last[0]), "=f"(last[1])
        : "r"(x[0]), "r"(x[2]), "r"(x[1]), "r"(x[3]), "r"(upper), "r"(lower), "f"(0.0f));
    result[0] = pack_bf16(first[0] + last[0], first[1] + last[1]);
    result[1] = pack_bf16(first[0] - last[0], first[1] - last[1]);
  }

  static constexpr uint32_t kMinus = 0x80008000u;  // both signs of a pair
  int part_;                                       // of the row
  uint32_t matrix_;  // the 8 x 8 Hadamard matrix as half of a B operand; the 16 x 16 is {{M, M}, {M, -M}}
};

}  // namespace vorta::fp8

#endif  // VORTA_TRT_KERNELS_FP8_TRANSFORM_CUH_
