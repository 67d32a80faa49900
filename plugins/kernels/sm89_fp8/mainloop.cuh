// SPDX-License-Identifier: Apache-2.0
//
// Attention of one warp's 16 query rows over the block's keys. While a step is computed, the next one is copied.
#ifndef VORTA_TRT_KERNELS_SM89_FP8_MAINLOOP_CUH_
#define VORTA_TRT_KERNELS_SM89_FP8_MAINLOOP_CUH_

#include "../sm90_fp8/softmax.cuh"
#include "cutlass/arch/memory_sm80.h"
#include "shared_storage.cuh"
#include "tensor_core.cuh"

namespace vorta::sm89_fp8 {

using sm90_fp8::OnlineSoftmax;
using sm90_fp8::row_of;

// The shift of a row may sink where a group of chunks ends; the first one is short, because first keys often stand out.
inline constexpr int kFirstGroupChunks = 8, kGroupChunks = 32;

/// Starts copying the chunks of `shared.chunk[stage]`.
template <class Traits>
__device__ void copy_stage(const Images& images, int stage, SharedStorage<Traits>& shared) {
  constexpr int kPieces = Traits::kChunkBytes / 16;  // of a chunk
  constexpr int kPasses = Traits::kChunks * kPieces / Traits::kThreads;
  static_assert(kPasses * Traits::kThreads == Traits::kChunks * kPieces, "every thread copies as many pieces");
  int thread;  // read anew, so that no address of the copies takes a register all through the loop
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  const auto copy = [](void* to, const void* from) {
    cutlass::arch::cp_async<16, cutlass::arch::CacheOperation::Global>(to, from);
  };
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int place = (pass * Traits::kThreads + thread) / kPieces;
    const int byte = (pass * Traits::kThreads + thread) % kPieces * 16;
    const int64_t offset = (shared.first_chunk + shared.chunk[stage][place]) * Traits::kChunkBytes + byte;
    copy(shared.stage[stage].key[place] + byte, images.key + offset);
    copy(shared.stage[stage].value[place] + byte, images.value + offset);
  }
  if (thread < Traits::kChunks)
    copy(&shared.notes[stage][thread], images.notes + shared.first_chunk + shared.chunk[stage][thread]);
  cutlass::arch::cp_async_fence();
}

/// Takes columns that are no keys out of the softmax.
template <class Traits>
__device__ void mask(int valid, uint32_t (&scores)[Traits::kScores]) {
  if (valid == kChunk) return;
  const int limit = valid - 2 * (threadIdx.x % 4);
#pragma unroll
  for (int i = 0; i < Traits::kScores; ++i) {
    if (8 * (i / 4) + i % 2 >= limit) scores[i] = OnlineSoftmax::kMasked;
  }
}

/// Thread 0 looks up the chunks that are copied next into `stage`.
template <class Traits>
__device__ void look_up_chunks(int stage, SharedStorage<Traits>& shared) {
  if (threadIdx.x != 0) return;
  for (int place = 0; place < Traits::kChunks; ++place) shared.chunk[stage][place] = shared.chunks.next();
}

/// output = softmax(Q K^T * scale) V over `chunks` chunks, at least one. The copy of the first stage has been started,
/// and the chunks of the second are looked up.
template <class Traits>
__device__ void attend(const Images& images, int chunks, const float (&row_factor)[2], SharedStorage<Traits>& shared,
                       float (&output)[Traits::kOutputs]) {
  const Products<Traits> products;
  const uint32_t query = shared_address(shared.query + threadIdx.x / 32 * Traits::kRowsPerWarp * Traits::kHeadDim);
  OnlineSoftmax softmax;
#pragma unroll
  for (int row = 0; row < 2; ++row) softmax.row_factor[row] = row_factor[row];
#pragma unroll
  for (int i = 0; i < Traits::kOutputs; ++i) output[i] = 0.0f;

  const auto rescale = [&](const float (&correction)[2]) {
#pragma unroll
    for (int i = 0; i < Traits::kOutputs; ++i) output[i] *= correction[row_of(i)];
  };

  int stage = Traits::kStages - 1, place = Traits::kChunks, group_left = kFirstGroupChunks;
#pragma unroll 1
  for (int left = chunks; left > 0; --left, ++place) {
    if (place == Traits::kChunks) {
      place = 0;
      stage ^= 1;
      cutlass::arch::cp_async_wait<0>();
      __syncthreads();  // the stage has arrived, every warp is done with the other one, whose chunks are known
      if (left > Traits::kChunks) {
        copy_stage(images, stage ^ 1, shared);
        look_up_chunks(stage, shared);
      }
    }
    const auto& keys = shared.stage[stage];
    const ChunkNote* note = &shared.notes[stage][place];
    uint32_t scores[Traits::kScores], weights[Traits::kWeights];
    products.query_key(query, shared_address(keys.key[place]), scores);
    mask<Traits>(note->valid, scores);
#pragma unroll 1
    for (bool raised = false;; raised = true) {
      softmax.weigh(scores, note, weights);
      if (raised || !softmax.is_exceeded()) break;
      float correction[2];
      softmax.raise(scores, note, correction);
      rescale(correction);
    }
    softmax.accept();
    products.weight_value(weights, shared_address(keys.value[place]), output);
    if (--group_left == 0) {
      group_left = kGroupChunks;
      float correction[2];
      softmax.lower(correction);
      rescale(correction);
    }
  }
  softmax.normalize(output);
}

}  // namespace vorta::sm89_fp8

#endif  // VORTA_TRT_KERNELS_SM89_FP8_MAINLOOP_CUH_
