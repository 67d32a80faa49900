// SPDX-License-Identifier: Apache-2.0
//
// Shared memory of a thread block and the barriers between its warps. Tiles are [D / 64][rows][64] elements, every row
// of 128 bytes swizzled as TMA and wgmma agree on (128-byte swizzle: the 16-byte chunk c of row r stands at c ^ (r %
// 8)).
#ifndef VORTA_TRT_KERNELS_SM90_SHARED_STORAGE_CUH_
#define VORTA_TRT_KERNELS_SM90_SHARED_STORAGE_CUH_

#include "block_shape.h"
#include "cute/arch/cluster_sm90.hpp"
#include "cutlass/arch/barrier.h"
#include "work_item.cuh"

namespace vorta::sm90 {

using cutlass::arch::ClusterBarrier;
using cutlass::arch::ClusterTransactionBarrier;
using cutlass::arch::NamedBarrier;

/// Hardware barriers besides the one of __syncthreads. Threads that wait at one sleep, so these serve the long waits.
enum NamedBarrierId : uint32_t {
  kTurn = 0,            // + warpgroup: it may issue its products
  kCleaned = kTurn + 3  // all consumers: a dirty block of values has been cleaned
};

/// Waits for the phase of the given parity to end. For short waits: it polls.
__device__ inline void wait(const ClusterBarrier& barrier, unsigned parity) {
  const uint32_t address = cute::cast_smem_ptr_to_uint(&barrier);
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(address),
      "r"(parity)
      : "memory");
}

inline constexpr int kSwizzleBytes = 128;  // of a row
inline constexpr int kItemSlots = 2;       // work items in flight: one computed, the next one prepared

/// Warps of the producer warpgroup.
enum ProducerWarp : int {
  kKeyWarp,          // fetches K
  kValueWarp,        // fetches V
  kQueryWarp,        // takes work items, and fetches the query rows of the first consumer warpgroup
  kQueryWarpEnd = 4  // a further warp for each further consumer warpgroup
};

/// kRouted: heads take branches; else all are full, with keys of another sequence.
template <class Element_, int kHeadDim_, bool kRouted_ = true>
struct KernelTraits {
  using Element = Element_;
  using Shape = std::conditional_t<kRouted_, BlockShape<kHeadDim_>, CrossBlockShape<kHeadDim_>>;
  static constexpr bool kRouted = kRouted_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kColumnGroups = kHeadDim / 64;
  static constexpr int kCluster = Shape::kCluster;
  static constexpr int kConsumers = Shape::kConsumers;
  static constexpr int kRows = kConsumers * kRowsPerWarpgroup;
  static constexpr int kKeys = Shape::kKeys;
  static constexpr int kKeyStages = Shape::kKeyStages;
  static constexpr int kValueStages = Shape::kValueStages;
  static constexpr int kThreads = (1 + kConsumers) * kThreadsPerWarpgroup;
  static constexpr int kQueryBytes = kRows * kHeadDim * 2;
  static constexpr int kStageBytes = kKeys * kHeadDim * 2;
};

template <class Traits>
struct SharedStorage {
  alignas(1024) unsigned char query[kItemSlots][Traits::kQueryBytes];
  alignas(1024) unsigned char key[Traits::kKeyStages][Traits::kStageBytes];
  alignas(1024) unsigned char value[Traits::kValueStages][Traits::kStageBytes];
  ClusterTransactionBarrier key_full[Traits::kKeyStages], value_full[Traits::kValueStages];
  ClusterBarrier key_empty[Traits::kKeyStages], value_empty[Traits::kValueStages];
  ClusterBarrier query_full[kItemSlots][Traits::kConsumers];
  ClusterBarrier item_full[kItemSlots], item_empty[kItemSlots];
  WorkItem item[kItemSlots];
  int row_token[kItemSlots][Traits::kRows];
  Copies row_copies[kItemSlots][Traits::kRows];  // of coreset items
  // How the first block of a cluster tells the others which item comes next.
  ClusterTransactionBarrier assignment_full[kItemSlots];
  ClusterBarrier assignment_empty[kItemSlots];
  Assignment assignment[kItemSlots];
  HeadCounts counts;  // of the thread block that decides
};

/// Position in a ring of stages and the parity its barriers have this time round.
template <int kStages>
struct RingPosition {
  int stage = 0;
  unsigned parity = 0;

  __device__ RingPosition next() const {
    return stage + 1 == kStages ? RingPosition{0, parity ^ 1} : RingPosition{stage + 1, parity};
  }
  __device__ int before() const { return stage == 0 ? kStages - 1 : stage - 1; }
};

/// This thread block's number in its cluster.
template <class Traits>
__device__ int cluster_rank() {
  return Traits::kCluster == 1 ? 0 : static_cast<int>(cute::block_rank_in_cluster());
}

/// Waits for all threads of the cluster.
template <class Traits>
__device__ void sync_cluster() {
  if constexpr (Traits::kCluster == 1) {
    __syncthreads();
  } else {
    cute::cluster_sync();
  }
}

template <class Traits>
__device__ void init_barriers(SharedStorage<Traits>& shared) {
  constexpr int kConsumerWarps = Traits::kConsumers * 4;
  for (int stage = 0; stage < Traits::kKeyStages; ++stage) {
    shared.key_full[stage].init(1);
    shared.key_empty[stage].init(kConsumerWarps * Traits::kCluster);
  }
  for (int stage = 0; stage < Traits::kValueStages; ++stage) {
    shared.value_full[stage].init(1);
    shared.value_empty[stage].init(kConsumerWarps * Traits::kCluster);
  }
  for (int slot = 0; slot < kItemSlots; ++slot) {
    for (int consumer = 0; consumer < Traits::kConsumers; ++consumer) shared.query_full[slot][consumer].init(32);
    shared.item_full[slot].init(1);
    shared.assignment_full[slot].init(1);
    shared.assignment_empty[slot].init(Traits::kCluster - 1 > 0 ? Traits::kCluster - 1 : 1);
    shared.item_empty[slot].init(kConsumerWarps + kQueryWarpEnd - 1);  // the producer's other warps
  }
  cutlass::arch::fence_barrier_init();
}

}  // namespace vorta::sm90

#endif  // VORTA_TRT_KERNELS_SM90_SHARED_STORAGE_CUH_
