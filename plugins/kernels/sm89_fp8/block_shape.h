// SPDX-License-Identifier: Apache-2.0
//
// The tile shapes of the 8-bit kernel on mma.sync. A thread block computes kRows query rows and walks over the keys
// kChunks chunks at a time.
#ifndef VORTA_TRT_KERNELS_SM89_FP8_BLOCK_SHAPE_H_
#define VORTA_TRT_KERNELS_SM89_FP8_BLOCK_SHAPE_H_

#include "../fp8/images.h"

namespace vorta::sm89_fp8 {

using fp8::ChunkNote;
using fp8::Images;
using fp8::kChunk;

/// Shared memory a thread block may ask for on SM89 and SM120.
inline constexpr int kMaxSharedBytes = 99 * 1024;

template <class Element_, int kHeadDim_>
struct KernelTraits {
  using Element = Element_;  // of the inputs and the output
  static constexpr int kHeadDim = kHeadDim_;
  // 16 rows a warp: with 32, K and V would be read from shared memory half as often, but that is not what binds: 32
  // keys take 512 cycles of a processor's tensor cores (m16n8k32 every 16 cycles, and longer on GeForce) and 300 of its
  // shared memory. 12 warps, three for each scheduler to hide the softmax, have 168 registers each, which does not
  // spill.
  static constexpr int kWarps = 12;
  static constexpr int kRowsPerWarp = 16;
  static constexpr int kRows = kWarps * kRowsPerWarp;
  static constexpr int kThreads = 32 * kWarps;
  // 96 keys at D = 128: every thread copies as many 16-byte pieces, and two stages and the query rows take 73 KB.
  static constexpr int kChunks = 3 * 128 / kHeadDim;  // of a stage
  static constexpr int kStages = 2;
  static constexpr int kChunkBytes = kChunk * kHeadDim;
  static constexpr int kScores = 16;             // registers of a thread
  static constexpr int kWeights = 4;             // registers of four weights each
  static constexpr int kOutputs = kHeadDim / 2;  // registers of a thread
};

}  // namespace vorta::sm89_fp8

#endif  // VORTA_TRT_KERNELS_SM89_FP8_BLOCK_SHAPE_H_
