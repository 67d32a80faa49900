// SPDX-License-Identifier: Apache-2.0
//
// The tile shapes of the 8-bit Hopper kernel, and the images it multiplies from. Keys come in chunks of 32, the depth
// of an 8-bit wgmma; a chunk of K or V is an image of 32 D bytes that lies in memory as it has to lie in shared memory,
// so that any list of chunks makes a block.
#ifndef VORTA_TRT_KERNELS_SM90_FP8_BLOCK_SHAPE_H_
#define VORTA_TRT_KERNELS_SM90_FP8_BLOCK_SHAPE_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "../kernel_families.h"
#include "vorta_trt/routed_attention.h"

namespace vorta::sm90_fp8 {

inline constexpr int kChunk = 32;  // keys
inline constexpr int kChunkNoteBytes = 16;

inline constexpr int kChunks = 5;  // of a block of keys: scores 80 + weights 2 x 20 + output 64 registers of 224
inline constexpr int kConsumerRegisters = 224;
inline constexpr int kProducerRegisters = 56;

constexpr int64_t chunks_of(int64_t keys) { return (keys + kChunk - 1) / kChunk; }

/// Chunks reserved for a head: those of its longest route, the text, and one of no keys. Sliding heads have their
/// tokens tile by tile, every tile in chunks of its own.
inline int64_t chunks_per_head(const vorta_routed_attention_problem& problem) {
  const auto volume = [](const int32_t (&box)[3]) { return int64_t{1} * box[0] * box[1] * box[2]; };
  const int64_t video = volume(problem.grid), tile = volume(problem.tile);
  const int64_t kept = video / volume(problem.bucket) * problem.keep;
  return std::max({chunks_of(video), chunks_of(kept), video / tile * chunks_of(tile)}) +
         chunks_of(problem.text_tokens) + 1;
}

}  // namespace vorta::sm90_fp8

#endif  // VORTA_TRT_KERNELS_SM90_FP8_BLOCK_SHAPE_H_
