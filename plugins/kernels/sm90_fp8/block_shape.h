// SPDX-License-Identifier: Apache-2.0
//
// The tile shapes of the 8-bit Hopper kernel. A chunk of K or V is an image of 32 D bytes that lies in memory as it has
// to lie in shared memory, so that any list of chunks makes a block.
#ifndef VORTA_TRT_KERNELS_SM90_FP8_BLOCK_SHAPE_H_
#define VORTA_TRT_KERNELS_SM90_FP8_BLOCK_SHAPE_H_

#include "../fp8/chunks.h"

namespace vorta::sm90_fp8 {

using fp8::kChunk;
using fp8::kChunkNoteBytes;

inline constexpr int kChunks = 5;  // of a block of keys: scores 80 + weights 2 x 20 + output 64 registers of 224
inline constexpr int kConsumerRegisters = 224;
inline constexpr int kProducerRegisters = 56;

}  // namespace vorta::sm90_fp8

#endif  // VORTA_TRT_KERNELS_SM90_FP8_BLOCK_SHAPE_H_
