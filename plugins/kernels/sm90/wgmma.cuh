// SPDX-License-Identifier: Apache-2.0
//
// The two matrix products of one warpgroup, on arrays of registers and matrix descriptors.
//
// Accumulator of a 64 x n product: warp w has rows 16 w to 16 w + 15; element i of a thread is in row lane / 4 (+ 8 if
// i / 2 is odd) and column 8 (i / 4) + 2 (lane % 4) + i % 2. Rounded in pairs, elements 8 k to 8 k + 7 are the A
// operand of the k-th step of 16.
#ifndef VORTA_TRT_KERNELS_SM90_WGMMA_CUH_
#define VORTA_TRT_KERNELS_SM90_WGMMA_CUH_

#include <utility>

#include "cute/arch/mma_sm90.hpp"
#include "cute/arch/mma_sm90_desc.hpp"
#include "cute/arch/mma_sm90_gmma.hpp"
#include "cute/layout.hpp"
#include "cute/numeric/integral_constant.hpp"
#include "shared_storage.cuh"

namespace vorta::sm90 {

using cute::SM90::GMMA::Major;
using cute::SM90::GMMA::ScaleOut;

inline constexpr int kStepK = 16;  // of a wgmma on 2-byte elements

/// Descriptor of a 128-byte-swizzled tile; `group_bytes`: from 64 columns to the next, read only if columns are along
/// M/N.
__device__ inline uint64_t tile_descriptor(const void* shared, int group_bytes) {
  cute::GmmaDescriptor descriptor;
  descriptor.bitfield.start_address_ = cute::cast_smem_ptr_to_uint(shared) >> 4;
  descriptor.bitfield.leading_byte_offset_ = group_bytes >> 4;
  descriptor.bitfield.stride_byte_offset_ = 8 * kSwizzleBytes >> 4;  // from 8 rows to the next
  descriptor.bitfield.base_offset_ = 0;
  descriptor.bitfield.layout_type_ = static_cast<uint8_t>(cute::SM90::GMMA::LayoutType::B128);
  return descriptor;
}

template <class Op, size_t... kIndex>
__device__ void fma_shared(uint64_t a, uint64_t b, float (&c)[sizeof...(kIndex)], ScaleOut scale,
                           std::index_sequence<kIndex...>) {
  Op::fma(a, b, c[kIndex]..., scale);
}

template <class Op, size_t... kIndex>
__device__ void fma_registers(const uint32_t* a, uint64_t b, float (&c)[sizeof...(kIndex)], ScaleOut scale,
                              std::index_sequence<kIndex...>) {
  Op::fma(a[0], a[1], a[2], a[3], b, c[kIndex]..., scale);
}

/// Keeps the compiler from moving accesses of the accumulator across a wait.
template <int kSize>
__device__ void fence_accumulator(float (&c)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) cute::warpgroup_fence_operand(c[i]);
}

template <class Traits>
struct Products {
  using Element = typename Traits::Element;
  static constexpr int kKeys = Traits::kKeys;
  using QueryKey =
      decltype(cute::SM90::GMMA::ss_op_selector<
               Element, Element, float, cute::Shape<cute::_64, cute::Int<kKeys>, cute::_16>, Major::K, Major::K>());
  using WeightValue =
      decltype(cute::SM90::GMMA::rs_op_selector<Element, Element, float,
                                                cute::Shape<cute::_64, cute::Int<Traits::kHeadDim>, cute::_16>,
                                                Major::K, Major::MN>());
  static constexpr int kScores = kKeys / 2;      // registers of a thread
  static constexpr int kSteps = kKeys / kStepK;  // of P V
  static constexpr int kEarlySteps = (kSteps + 1) / 2;
  static constexpr int kEarlyScores = 8 * kEarlySteps, kLateScores = kScores - kEarlyScores;
  static constexpr int kOutputs = Traits::kHeadDim / 2;

  /// scores [64, kKeys] = Q [64, D] K^T.
  static __device__ void query_key(uint64_t query, uint64_t key, float (&scores)[kScores]) {
#pragma unroll
    for (int step = 0; step < Traits::kHeadDim / kStepK; ++step) {
      const int group = step / 4, bytes = step % 4 * kStepK * 2;
      fma_shared<QueryKey>(query + ((group * Traits::kRows * kSwizzleBytes + bytes) >> 4),
                           key + ((group * kKeys * kSwizzleBytes + bytes) >> 4), scores,
                           step == 0 ? ScaleOut::Zero : ScaleOut::One, std::make_index_sequence<kScores>{});
    }
  }

  /// output [64, D] += P [64, kKeys] V; P comes in two parts.
  static __device__ void weight_value(const uint32_t (&early)[kEarlyScores / 2],
                                      const uint32_t (&late)[kLateScores / 2], uint64_t value,
                                      float (&output)[kOutputs]) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const uint32_t* weights = step < kEarlySteps ? &early[4 * step] : &late[4 * (step - kEarlySteps)];
      fma_registers<WeightValue>(weights, value + (step * kStepK * kSwizzleBytes >> 4), output, ScaleOut::One,
                                 std::make_index_sequence<kOutputs>{});
    }
  }
};

}  // namespace vorta::sm90

#endif  // VORTA_TRT_KERNELS_SM90_WGMMA_CUH_
