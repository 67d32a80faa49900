// SPDX-License-Identifier: Apache-2.0
//
// The CuTe types of one instance: shared-memory layouts, tensor-core tiling and shared-memory copies.
#ifndef VORTA_TRT_KERNELS_KERNEL_TRAITS_CUH_
#define VORTA_TRT_KERNELS_KERNEL_TRAITS_CUH_

#include <type_traits>

#include "block_iteration.cuh"
#include "block_shape.h"
#include "cute/tensor.hpp"
#include "cutlass/numeric_types.h"

namespace vorta::sm80 {

template <class Element_, int kInstanceHeadDim>
struct KernelTraits {
  using Element = Element_;
  static constexpr BlockShape kShape = block_shape(kInstanceHeadDim);
  static constexpr int kHeadDim = kShape.head_dim;
  static constexpr int kBlockM = kShape.block_m;
  static constexpr int kBlockN = kShape.block_n;
  static constexpr int kWarps = kShape.warps;
  static constexpr int kThreads = 32 * kWarps;
  static_assert(kHeadDim == kInstanceHeadDim, "no block shape for this head dimension");
  static_assert(sizeof(Element) == 2, "layouts and copies below are for 2-byte elements");

  static constexpr int kRowsPerThread = kBlockM / kWarps / 8;
  // Whether the softmax's sums wait in shared memory during Q K^T: the products' operands take 192 registers here.
  static constexpr bool kParksSums = kShape.parks_sums;

  // Rows of 8 x 64 (or 8 x 32, where 64 does not divide D) elements, their 16-byte chunks swizzled so that neither the
  // 8 rows of an ldmatrix nor the row-wise copies below meet in a bank.
  static constexpr int kSwizzleColumns = kHeadDim % 64 == 0 ? 64 : 32;
  static constexpr int kSwizzleBits = kSwizzleColumns == 64 ? 3 : 2;
  using SwizzleAtom = decltype(cute::composition(cute::Swizzle<kSwizzleBits, 3, 3>{},
                                                 cute::Layout<cute::Shape<cute::_8, cute::Int<kSwizzleColumns>>,
                                                              cute::Stride<cute::Int<kSwizzleColumns>, cute::_1>>{}));
  using LayoutQ = decltype(cute::tile_to_shape(SwizzleAtom{}, cute::Shape<cute::Int<kBlockM>, cute::Int<kHeadDim>>{}));
  using LayoutKV = decltype(cute::tile_to_shape(SwizzleAtom{}, cute::Shape<cute::Int<kBlockN>, cute::Int<kHeadDim>>{}));
  // V seen as [D, kBlockN], the B operand of P V.
  using LayoutVt = decltype(cute::composition(
      LayoutKV{}, cute::make_layout(cute::Shape<cute::Int<kHeadDim>, cute::Int<kBlockN>>{}, cute::GenRowMajor{})));

  // 16-byte chunks of a row: kThreadsPerRow threads copy one swizzle atom's width, then step over the atoms.
  static constexpr int kChunk = 8;  // elements
  static constexpr int kThreadsPerRow = kSwizzleColumns / kChunk;
  static constexpr int kRowsPerPass = kThreads / kThreadsPerRow;
  static_assert(kRowsPerPass % 8 == 0, "a thread's rows must be the same row of every swizzle atom");
  static_assert(kBlockM % kRowsPerPass == 0 && kBlockN % kRowsPerPass == 0, "copies must cover the block");

  using MmaAtom =
      std::conditional_t<std::is_same_v<Element, cutlass::half_t>, cute::MMA_Atom<cute::SM80_16x8x16_F32F16F16F32_TN>,
                         cute::MMA_Atom<cute::SM80_16x8x16_F32BF16BF16F32_TN>>;
  using TiledMma = cute::TiledMMA<MmaAtom, cute::Layout<cute::Shape<cute::Int<kWarps>, cute::_1, cute::_1>>,
                                  cute::Tile<cute::Int<16 * kWarps>, cute::_16, cute::_16>>;
  using CopyRows = cute::Copy_Atom<cute::SM75_U32x4_LDSM_N, Element>;          // Q and K: ldmatrix
  using CopyColumns = cute::Copy_Atom<cute::SM75_U16x8_LDSM_T, Element>;       // V: ldmatrix, transposed
  using CopyOutput = cute::Copy_Atom<cute::UniversalCopy<uint32_t>, Element>;  // pairs of neighbouring columns
};

template <class Traits>
struct SharedStorage {
  alignas(128) typename Traits::Element query[Traits::kBlockM * Traits::kHeadDim];  // the output, once it is done
  alignas(128) typename Traits::Element key[Traits::kBlockN * Traits::kHeadDim];
  alignas(128) typename Traits::Element value[Traits::kBlockN * Traits::kHeadDim];
  int key_token[2][Traits::kBlockN];  // token ids of this step's and the next step's keys, -1 where there is none
  BlockIteration iteration;
  const typename Traits::Element* key_rows;  // of this head: here for want of registers
  const typename Traits::Element* value_rows;
  alignas(16) float sums[Traits::kParksSums ? Traits::kThreads : 1][Traits::kRowsPerThread];

  /// Token ids of the query rows, -1 where there is none: before the first V comes they lie in its place, after the
  /// last key in that of the keys' ids.
  __device__ int* first_query_token() { return reinterpret_cast<int*>(value); }
  __device__ int* last_query_token() { return key_token[0]; }
};

}  // namespace vorta::sm80

#endif  // VORTA_TRT_KERNELS_KERNEL_TRAITS_CUH_
