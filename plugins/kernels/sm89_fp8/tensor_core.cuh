// SPDX-License-Identifier: Apache-2.0
//
// The two products of a warp's 16 query rows with one chunk of keys, on mma.sync m16n8k32. Accumulators and the left
// operand have the layout of wgmma's: element i of a thread is column 8 (i / 4) + 2 (lane % 4) + i % 2 of row
// lane / 4 + 8 (i / 2 % 2).
#ifndef VORTA_TRT_KERNELS_SM89_FP8_TENSOR_CORE_CUH_
#define VORTA_TRT_KERNELS_SM89_FP8_TENSOR_CORE_CUH_

#include "block_shape.h"

namespace vorta::sm89_fp8 {

/// Whether the code that is compiled has 8-bit floating-point products: SM89 and newer. On SM90 and SM100 they are
/// emulated, with the same results.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
#define VORTA_HAS_E4M3_MMA 1
#endif

/// Four 8x8 matrices of pairs of bytes; lane 8 i + r gives the address of row r of matrix i.
__device__ __forceinline__ void load_matrices(uint32_t (&result)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
               : "r"(address));
}

/// accumulator += a b, int8.
__device__ __forceinline__ void multiply_int8(int32_t* c, const uint32_t* a, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// accumulator += a b, e4m3.
__device__ __forceinline__ void multiply_e4m3(float (&c)[4], const uint32_t* a, uint32_t b0, uint32_t b1) {
#ifdef VORTA_HAS_E4M3_MMA
  asm("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

/// The products of one warp. Addresses are of shared memory.
template <class Traits>
class Products {
 public:
  __device__ Products() {
    const int lane = threadIdx.x % 32, matrix = lane / 8, row = lane % 8;
    // Q: rows 0 to 7 and 8 to 15 of one 16-byte piece, then of the next. K: four pieces of 8 keys.
    query_offset_ = (matrix % 2 * 8 + row) * kHeadDim + fp8::swizzled_piece<kHeadDim>(row, matrix / 2) * 16;
    key_offset_ = row * kHeadDim + fp8::swizzled_piece<kHeadDim>(row, matrix) * 16;
    // V: both pieces of 8 columns, then of the next 8.
    value_offset_ = (matrix / 2 * 8 + row) * kChunk + fp8::swizzled_piece<kChunk>(row, matrix % 2) * 16;
  }

  /// scores = Q K^T, with `query` [16, D] and `key` [32, D]. Later pieces of a row are swizzled as its first ones are:
  /// their distance is an exclusive or.
  __device__ void query_key(uint32_t query, uint32_t key, uint32_t (&scores)[Traits::kScores]) const {
    auto* sums = reinterpret_cast<int32_t*>(scores);
#pragma unroll
    for (int i = 0; i < Traits::kScores; ++i) sums[i] = 0;
#pragma unroll 1                                        // else more of K is fetched ahead than there are registers
    for (int half = 0; half < kHeadDim / 64; ++half) {  // of the columns: 64 are two products deep
      uint32_t q[2][4];
#pragma unroll
      for (int depth = 0; depth < 2; ++depth) {
        load_matrices(q[depth], (query + query_offset_) ^ (half * 64 + depth * 32));
      }
      const uint32_t first = (key + key_offset_) ^ (half * 64);
#pragma unroll
      for (int tile = 0; tile < kChunk / 8; ++tile) {  // of 8 keys
        uint32_t k[4];
        load_matrices(k, first + tile * 8 * kHeadDim);
        multiply_int8(sums + 4 * tile, q[0], k[0], k[1]);
        multiply_int8(sums + 4 * tile, q[1], k[2], k[3]);
      }
    }
  }

  /// output += P V with `value` [D, 32]. The tensor cores of SM89 keep 13 bits of a sum of 8-bit products, so the sum
  /// of a chunk is added to the output outside of them.
  __device__ void weight_value(const uint32_t (&weights)[Traits::kWeights], uint32_t value,
                               float (&output)[Traits::kOutputs]) const {
#pragma unroll
    for (int pair = 0; pair < kHeadDim / 16; ++pair) {  // of two tiles of 8 columns
      float sums[2][4] = {};
      uint32_t v[4];
      load_matrices(v, value + value_offset_ + pair * 16 * kChunk);
      multiply_e4m3(sums[0], weights, v[0], v[1]);
      multiply_e4m3(sums[1], weights, v[2], v[3]);
#pragma unroll
      for (int i = 0; i < 8; ++i) output[8 * pair + i] += sums[i / 4][i % 4];
    }
  }

 private:
  static constexpr int kHeadDim = Traits::kHeadDim;
  uint32_t query_offset_, key_offset_, value_offset_;
};

}  // namespace vorta::sm89_fp8

#endif  // VORTA_TRT_KERNELS_SM89_FP8_TENSOR_CORE_CUH_
