// SPDX-License-Identifier: Apache-2.0
//
// Products on Hopper by CUTLASS with other tiles, orders of tiles and epilogues than those in use, for measurements: a
// call names one by its `candidate`, or the environment by VORTA_LINEAR_VARIANT ("16:1003,8:1063": of products in 16
// bits, and with fp8; products without such a variant take the kernel in use).
//
//   candidate = 1000 + 20 * tile + 10 * (1 for bands of columns) + log2(clusters of a band)
#ifndef VORTA_TRT_KERNELS_SM90_LINEAR_VARIANTS_H_
#define VORTA_TRT_KERNELS_SM90_LINEAR_VARIANTS_H_

#include "linear/product.h"

namespace vorta::sm90_linear {

inline constexpr int kFirstVariant = 1000;

/// Rows and features of a tile, thread blocks of a cluster along both, and who computes. K is 128 bytes.
enum Tile : int {
  kWide = 0,         // 128 x 256, clusters 2 x 1, two groups of warps work on one tile
  kTall = 1,         // 256 x 128, 2 x 1
  kTallWide = 2,     // 256 x 128, 1 x 2
  kSquareTurns = 3,  // 128 x 128, 2 x 1, groups of warps take turns: the fp8 product in use
  kWideTurns = 4,    // 64 x 256, 2 x 1, take turns
  kTiles = 5,
};

enum Epilogue : int {
  kBias = 0,
  kBiasGelu = 1,
  kBiasGated = 2,          // residual + gate * (product + bias)
  kBiasGeluQuantized = 3,  // e4m3 over a scale of the row that is known before
  kEpilogues = 4,
};

struct BandShape {
  int clusters;  // of a band
  bool of_columns;
};

using VariantLauncher = cudaError_t (*)(const linear::Product&, const BandShape&, cudaStream_t);

/// One instance; those that were compiled are in the table of variants.cpp.
template <bool kFp8, vorta_dtype kDtype, int kTile, int kEpilogue>
cudaError_t launch_variant(const linear::Product& product, const BandShape& bands, cudaStream_t stream);

/// Launches the variant that `candidate` names; cudaErrorNotSupported if it is none, or was not compiled.
cudaError_t launch_variant(const linear::Product& product, int candidate, cudaStream_t stream);

/// The variant that VORTA_LINEAR_VARIANT names for such products, or 0.
int variant_of_environment(bool fp8);

}  // namespace vorta::sm90_linear

#endif  // VORTA_TRT_KERNELS_SM90_LINEAR_VARIANTS_H_
