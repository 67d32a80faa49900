// SPDX-License-Identifier: Apache-2.0
//
// Shared memory of a thread block. Barriers, rings and the warps' parts are those of sm90/.
#ifndef VORTA_TRT_KERNELS_SM90_FP8_SHARED_STORAGE_CUH_
#define VORTA_TRT_KERNELS_SM90_FP8_SHARED_STORAGE_CUH_

#include "../sm90/shared_storage.cuh"
#include "work_item.cuh"

namespace vorta::sm90_fp8 {

using sm90::ClusterBarrier;
using sm90::ClusterTransactionBarrier;
using sm90::kItemSlots;
using sm90::kRowsPerWarpgroup;
using sm90::kThreadsPerWarpgroup;
using sm90::NamedBarrier;
using sm90::RingPosition;
using sm90::wait;

template <class Element_, int kHeadDim_>
struct KernelTraits {
  using Element = Element_;  // of the inputs and the output
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kCluster = 1;
  static constexpr int kConsumers = 2;
  static constexpr int kRows = kConsumers * kRowsPerWarpgroup;
  static constexpr int kKeys = kChunks * kChunk;
  static constexpr int kKeyStages = kHeadDim == 128 ? 3 : 4;
  static constexpr int kValueStages = kKeyStages;
  static constexpr int kThreads = (1 + kConsumers) * kThreadsPerWarpgroup;
  static constexpr int kQueryBytes = kRows * kHeadDim;
  static constexpr int kChunkBytes = kChunk * kHeadDim;
  static constexpr int kStageBytes = kChunks * kChunkBytes;
  static constexpr int kOutputs = kHeadDim / 2;  // registers of a thread
};

/// The rows of a head's statistics that the kernel reads (see fp8::StatisticsRow), in bfloat16.
template <int kHeadDim>
struct alignas(16) HeadVectors {
  uint16_t query_factor[kHeadDim], value_mean[kHeadDim];
};

template <class Traits>
struct SharedStorage {
  alignas(1024) unsigned char query[kItemSlots][Traits::kQueryBytes];
  alignas(1024) unsigned char key[Traits::kKeyStages][Traits::kStageBytes];
  alignas(1024) unsigned char value[Traits::kValueStages][Traits::kStageBytes];
  alignas(16) ChunkNote notes[Traits::kKeyStages][kChunks];
  float total[Traits::kConsumers][Traits::kOutputs][kThreadsPerWarpgroup];  // see Consumer::flush()
  float query_scale[kItemSlots][Traits::kRows];
  HeadVectors<Traits::kHeadDim> vectors[kItemSlots][Traits::kConsumers];  // of the item's head
  ClusterTransactionBarrier key_full[Traits::kKeyStages], value_full[Traits::kValueStages];
  ClusterBarrier key_empty[Traits::kKeyStages], value_empty[Traits::kValueStages];
  ClusterBarrier query_full[kItemSlots][Traits::kConsumers];
  ClusterBarrier item_full[kItemSlots], item_empty[kItemSlots];
  WorkItem item[kItemSlots];
  int row_token[kItemSlots][Traits::kRows];
  const void* row_source[Traits::kRows];  // in the query tensor, null for rows that do not exist; the loaders' own
};

template <class Traits>
__device__ void init_barriers(SharedStorage<Traits>& shared) {
  constexpr int kConsumerWarps = Traits::kConsumers * 4;
  for (int stage = 0; stage < Traits::kKeyStages; ++stage) {
    shared.key_full[stage].init(1);
    shared.value_full[stage].init(1);
    shared.key_empty[stage].init(kConsumerWarps);
    shared.value_empty[stage].init(kConsumerWarps);
  }
  for (int slot = 0; slot < kItemSlots; ++slot) {
    for (int consumer = 0; consumer < Traits::kConsumers; ++consumer) shared.query_full[slot][consumer].init(32);
    shared.item_full[slot].init(1);
    shared.item_empty[slot].init(kConsumerWarps + 3);  // the producer's other warps
  }
  cutlass::arch::fence_barrier_init();
}

}  // namespace vorta::sm90_fp8

#endif  // VORTA_TRT_KERNELS_SM90_FP8_SHARED_STORAGE_CUH_
