// SPDX-License-Identifier: Apache-2.0
//
// Shared memory of a thread block.
#ifndef VORTA_TRT_KERNELS_SM89_FP8_SHARED_STORAGE_CUH_
#define VORTA_TRT_KERNELS_SM89_FP8_SHARED_STORAGE_CUH_

#include "../fp8/chunk_list.h"
#include "../sm80/block_iteration.cuh"
#include "block_shape.h"

namespace vorta::sm89_fp8 {

/// The keys of one step.
template <class Traits>
struct Stage {
  alignas(128) unsigned char key[Traits::kChunks][Traits::kChunkBytes];
  alignas(128) unsigned char value[Traits::kChunks][Traits::kChunkBytes];
};

template <class Traits>
struct SharedStorage {
  alignas(128) unsigned char query[Traits::kRows * Traits::kHeadDim];
  Stage<Traits> stage[Traits::kStages];
  alignas(16) ChunkNote notes[Traits::kStages][Traits::kChunks];
  int64_t first_chunk;                          // of the head, among all
  int chunk[Traits::kStages][Traits::kChunks];  // of the head, which are copied next
  int row_token[Traits::kRows];                 // kNoRow, or ~token of padded text
  sm80::BlockIteration iteration;               // here and not in the registers of every thread
  fp8::ChunkList chunks;                        // thread 0's
};

inline constexpr int kNoRow = INT32_MIN;

/// Address as instructions on shared memory want it.
__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

}  // namespace vorta::sm89_fp8

#endif  // VORTA_TRT_KERNELS_SM89_FP8_SHARED_STORAGE_CUH_
