// SPDX-License-Identifier: Apache-2.0
//
// The one table of tile shapes of the attention kernel. A thread block computes kBlockM query rows and walks over the
// keys kBlockN at a time; Q [kBlockM, D], K [kBlockN, D] and V [kBlockN, D] lie in shared memory.
#ifndef VORTA_TRT_KERNELS_SM80_BLOCK_SHAPE_H_
#define VORTA_TRT_KERNELS_SM80_BLOCK_SHAPE_H_

#include "../kernel_families.h"

namespace vorta::sm80 {

struct BlockShape {
  int head_dim;     // of the instance; a smaller D is zero-padded up to it
  int block_m;      // query rows of a thread block
  int block_n;      // keys of one step
  int warps;        // each owns block_m / warps query rows, a multiple of the 16 rows of an mma
  bool parks_sums;  // the softmax's sums wait in shared memory during Q K^T, or registers spill
};

inline constexpr BlockShape kBlockShapes[] = {
    // 32 query rows a warp let one ldmatrix of K or V feed two mma; 128 keys a step halve the barriers per key, and
    // scores [32, 128] + output [32, 64] take 128 + 64 fp32 registers of a thread, the most that does not spill.
    {64, 128, 128, 4, true},
    // Output grows to 96 registers, so the scores must shrink to 64; 48 KB let two blocks live on every SM80+ part.
    {96, 128, 64, 4, false},
    // 128 output + 64 score registers: the same 192 as D = 64. 65 KB: two blocks an SM on SM80 and SM90, one on SM86.
    // Measured on an H200, dense: 48 keys a step are 2 % slower, 8 warps of 16 rows 14 %.
    {128, 128, 64, 4, true},
    // 192 output registers would spill: 16 rows a warp halve them. 97 KB, just inside the 99 KB of SM86/89/120.
    {192, 128, 64, 8, false},
    // Q + K + V at 128 x 64 would need 128 KB; 64 x 64 needs 97 KB and 16 rows a warp keep the output at 128 registers.
    {256, 64, 64, 4, false},
};

/// Shared memory a thread block may ask for on SM86, SM89 and SM120, the smallest of SM80 to SM120.
inline constexpr int kMaxSharedBytes = 99 * 1024;

/// Shared memory of a block's BlockIteration.
inline constexpr int kIterationBytes = 256;
inline constexpr int kIterationAlignment = 128;

/// Q, K, V of 2-byte elements, the token ids of the keys, double-buffered, the iteration, two pointers, and the sums of
/// the four lanes of a row.
constexpr int shared_bytes(const BlockShape& shape) {
  const int sums = shape.parks_sums ? shape.block_m * 4 * 4 : 0;
  return (shape.block_m + 2 * shape.block_n) * shape.head_dim * 2 + 2 * shape.block_n * 4 + kIterationBytes + 128 +
         sums;
}

constexpr bool is_valid(const BlockShape& shape) {
  return shape.head_dim % 32 == 0                    // the columns of a swizzle atom
         && shape.block_m % (16 * shape.warps) == 0  // whole mma rows for every warp
         && shape.block_n % 16 == 0                  // whole mma k-steps in P V
         && shape.block_n <= 32 * shape.warps        // one thread looks up the token id of one key
         && shape.block_m <= 32 * shape.warps        // and of one query row
         && shape.block_m <= 2 * shape.block_n       // whose ids lie where those of the keys were
         && shared_bytes(shape) <= kMaxSharedBytes;
}

/// Every instance has a valid shape, in the order of the table of instances.
constexpr bool are_valid() {
  int row = 0;
  for (const BlockShape& shape : kBlockShapes) {
    if (!is_valid(shape) || row == HeadDims::kCount || shape.head_dim != HeadDims::kValues[row++]) return false;
  }
  return row == HeadDims::kCount;
}
static_assert(are_valid(), "a block shape breaks a rule of the kernel, or is not that of an instance");

/// The shape of an instance; head_dim must be in the table.
constexpr BlockShape block_shape(int head_dim) {
  for (const BlockShape& shape : kBlockShapes) {
    if (head_dim == shape.head_dim) return shape;
  }
  return {};
}

}  // namespace vorta::sm80

#endif  // VORTA_TRT_KERNELS_SM80_BLOCK_SHAPE_H_
