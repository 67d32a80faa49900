// SPDX-License-Identifier: Apache-2.0
//
// The one table of tile shapes of the Hopper kernel. A thread block is one producer warpgroup and kConsumers consumer
// warpgroups of 64 query rows each. Keys come kKeys at a time through stages of shared memory.
#ifndef VORTA_TRT_KERNELS_SM90_BLOCK_SHAPE_H_
#define VORTA_TRT_KERNELS_SM90_BLOCK_SHAPE_H_

#include "../kernel_families.h"

namespace vorta::sm90 {

inline constexpr int kRowsPerWarpgroup = 64;  // M of a wgmma
inline constexpr int kThreadsPerWarpgroup = 128;
/// Registers of a thread block at launch, which setmaxnreg can only move between its warpgroups: 65,536 shared by the
/// threads, rounded down to a multiple of 8 each. Asking for more waits for ever.
constexpr int registers_per_block(int warpgroups) {
  const int threads = warpgroups * kThreadsPerWarpgroup;
  return 65536 / threads / 8 * 8 * threads;
}
inline constexpr int kMaxSharedBytes = 227 * 1024;

template <int kHeadDim>
struct BlockShape;

template <>
struct BlockShape<128> {
  static constexpr int kCluster = 2;  // thread blocks that share their keys
  static constexpr int kConsumers = 2;
  // Scores 72 + weights 56 + output 64 registers leave 32 of 224 for everything else. 144 keys are two planes (9, 8) of
  // the published tiles, so that their windows are cut without waste.
  static constexpr int kKeys = 144;
  static constexpr int kKeyStages = 2;
  static constexpr int kValueStages = 2;  // 2 x (Q 32 KB + K 36 KB + V 36 KB) = 208 KB
  static constexpr int kConsumerRegisters = 224;
  static constexpr int kProducerRegisters = 56;
};

template <>
struct BlockShape<64> {
  static constexpr int kCluster = 1;  // a cluster splits a load by groups of 64 columns
  static constexpr int kConsumers = 2;
  static constexpr int kKeys = 144;
  static constexpr int kKeyStages = 4;
  static constexpr int kValueStages = 4;  // 2 x Q 16 KB + 4 x (K 18 KB + V 18 KB) = 176 KB
  static constexpr int kConsumerRegisters = 224;
  static constexpr int kProducerRegisters = 56;
};

/// For keys of another sequence: texts of 512 tokens are whole blocks of 128, and the last block of 144 would be half
/// empty. Measured on an H100 at 72,000 x 512, 40 heads: 1.38 ms, not 1.50.
template <int kHeadDim>
struct CrossBlockShape : BlockShape<kHeadDim> {
  static constexpr int kKeys = 128;
};

/// Head dimensions of the instances with CrossBlockShape.
using CrossHeadDims = Instances<128>;

/// Whether blocks of CrossBlockShape have fewer empty rows for so many keys than blocks of BlockShape.
template <int kHeadDim>
constexpr bool prefers_cross_shape(int64_t keys) {
  const auto rounded_up = [=](int64_t block) { return (keys + block - 1) / block * block; };
  return rounded_up(CrossBlockShape<kHeadDim>::kKeys) < rounded_up(BlockShape<kHeadDim>::kKeys);
}

template <class Shape, int kHeadDim>
constexpr bool is_valid() {
  return kHeadDim % 64 == 0  // columns of a 128-byte swizzle atom
         && (Shape::kCluster == 1 || Shape::kCluster == kHeadDim / 64) &&
         Shape::kConsumers == 2     // the query loaders: a warp for each
         && Shape::kKeys % 16 == 0  // whole wgmma k-steps in P V
         && Shape::kKeys <= 256     // N of a wgmma, rows of a TMA box
         && Shape::kProducerRegisters % 8 == 0 && Shape::kConsumerRegisters % 8 == 0  // setmaxnreg
         && (Shape::kConsumers * Shape::kConsumerRegisters + Shape::kProducerRegisters) * kThreadsPerWarpgroup <=
                registers_per_block(Shape::kConsumers + 1);
}

template <int... kHeadDims>
constexpr bool are_valid(Instances<kHeadDims...>) {
  return ((is_valid<BlockShape<kHeadDims>, kHeadDims>() && is_valid<CrossBlockShape<kHeadDims>, kHeadDims>()) && ...);
}
static_assert(are_valid(HeadDims{}), "a block shape breaks a rule of the kernel");

}  // namespace vorta::sm90

#endif  // VORTA_TRT_KERNELS_SM90_BLOCK_SHAPE_H_
