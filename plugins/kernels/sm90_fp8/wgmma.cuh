// SPDX-License-Identifier: Apache-2.0
//
// The two matrix products of one warpgroup: S = Q K^T in int8 with int32 sums, O += P V in e4m3 with float32 sums.
#ifndef VORTA_TRT_KERNELS_SM90_FP8_WGMMA_CUH_
#define VORTA_TRT_KERNELS_SM90_FP8_WGMMA_CUH_

#include <utility>

#include "cute/arch/mma_sm90.hpp"
#include "cute/arch/mma_sm90_desc.hpp"
#include "cute/arch/mma_sm90_gmma.hpp"
#include "shared_storage.cuh"

namespace vorta::sm90_fp8 {

using cute::SM90::GMMA::ScaleOut;

/// Descriptor of a K-major tile of rows of kRowBytes, swizzled over as many.
template <int kRowBytes>
__device__ uint64_t tile_descriptor(const void* shared) {
  using cute::SM90::GMMA::LayoutType;
  cute::GmmaDescriptor descriptor;
  descriptor.bitfield.start_address_ = cute::cast_smem_ptr_to_uint(shared) >> 4;
  descriptor.bitfield.leading_byte_offset_ = 0;  // not read: a step of k is within a row
  descriptor.bitfield.stride_byte_offset_ = 8 * kRowBytes >> 4;
  descriptor.bitfield.base_offset_ = 0;
  descriptor.bitfield.layout_type_ =
      static_cast<uint8_t>(kRowBytes == 128 ? LayoutType::B128 : (kRowBytes == 64 ? LayoutType::B64 : LayoutType::B32));
  return descriptor;
}

template <class Op, size_t... kIndex>
__device__ void fma_shared(uint64_t a, uint64_t b, uint32_t (&c)[sizeof...(kIndex)], ScaleOut scale,
                           std::index_sequence<kIndex...>) {
  Op::fma(a, b, c[kIndex]..., scale);
}

template <class Op, size_t... kIndex>
__device__ void fma_registers(const uint32_t* a, uint64_t b, float (&c)[sizeof...(kIndex)],
                              std::index_sequence<kIndex...>) {
  Op::fma(a[0], a[1], a[2], a[3], b, c[kIndex]..., ScaleOut::One);
}

/// Keeps the compiler from moving accesses of the accumulator across a wait.
template <class Register, int kSize>
__device__ void fence_accumulator(Register (&c)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) cute::warpgroup_fence_operand(c[i]);
}

template <class Traits>
struct Products {
  static_assert(Traits::kKeys == 160, "the instruction of QueryKey");
  using QueryKey = cute::SM90::GMMA::MMA_64x160x32_S32S8S8_SS_TN;
  using WeightValue = std::conditional_t<Traits::kHeadDim == 128, cute::SM90::GMMA::MMA_64x128x32_F32E4M3E4M3_RS_TN<>,
                                         cute::SM90::GMMA::MMA_64x64x32_F32E4M3E4M3_RS_TN<>>;
  static constexpr int kScores = Traits::kKeys / 2;  // registers of a thread
  static constexpr int kWeights = kScores / 4;
  static constexpr int kOutputs = Traits::kOutputs;

  /// scores [64, kKeys] = Q [64, D] K^T.
  static __device__ void query_key(uint64_t query, uint64_t key, uint32_t (&scores)[kScores]) {
#pragma unroll
    for (int step = 0; step < Traits::kHeadDim / 32; ++step) {
      fma_shared<QueryKey>(query + step * 2, key + step * 2, scores, step == 0 ? ScaleOut::Zero : ScaleOut::One,
                           std::make_index_sequence<kScores>{});
    }
  }

  /// output [64, D] += P [64, kKeys] V.
  static __device__ void weight_value(const uint32_t (&weights)[kWeights], uint64_t value, float (&output)[kOutputs]) {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      fma_registers<WeightValue>(&weights[4 * chunk], value + (chunk * Traits::kChunkBytes >> 4), output,
                                 std::make_index_sequence<kOutputs>{});
    }
  }
};

}  // namespace vorta::sm90_fp8

#endif  // VORTA_TRT_KERNELS_SM90_FP8_WGMMA_CUH_
