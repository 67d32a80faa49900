// SPDX-License-Identifier: Apache-2.0
//
// The producer warpgroup. One warp keeps the ring of K full with TMA, one that of V; the others take work items and
// gather the query rows of the next one with cp.async while the consumers are busy with this one.
#ifndef VORTA_TRT_KERNELS_SM90_PRODUCER_CUH_
#define VORTA_TRT_KERNELS_SM90_PRODUCER_CUH_

#include "cute/arch/cluster_sm90.hpp"
#include "cute/arch/copy_sm80.hpp"
#include "cute/arch/copy_sm90_tma.hpp"
#include "shared_storage.cuh"

namespace vorta::sm90 {

/// The blocks of K or V of one work item, in order.
template <class Traits>
class KeyStream {
 public:
  __device__ KeyStream(const AttentionParams& params, const KeyMaps& maps, const TensorView& tensor,
                       const WorkItem& item)
      : params_(params), maps_(maps) {
    const RoutedAttentionParams& problem = params.problem;
    shared_ = Traits::kCluster > 1 && item.shared_keys;
    first_group_ = shared_ ? cluster_rank<Traits>() : 0;
    head_ = tensor.head_stride == 0 ? 0 : item.head;
    sample_ = tensor.batch_stride == 0 ? 0 : item.sample;
    flat_ = &maps.flat;
    if (item.kind == ItemKind::kSliding) {
      token_ = problem.video_tokens;
    } else if (item.kind == ItemKind::kCoreset) {
      flat_ = &maps.compact;
      head_ = item.head;
      sample_ = item.sample;
    }
  }

  /// Begins a part of the item's window.
  __device__ void start_part(const WorkItem& item, int index) {
    const WindowPart& part = params_.cut.part[item.window_shape][index];
    const int (&origin)[3] = item.group.window_origin;
    boxes_ = &maps_.grid[item.window_shape][index];
    height_ = part.height;
    width_ = part.width;
    box_height_ = part.box_height;
    box_width_ = part.box_width;
    h_ = origin[0] * params_.problem.tiles.grid[1] + origin[1] + part.row;
    w_ = origin[2] + part.column;
    h_end_ = h_ + height_;
    w_end_ = w_ + width_;
  }

  /// Fetches the next block of the part, of `rows` keys, into `shared`. One thread calls it. The barrier hears of the
  /// bytes after the copies are on their way: it waits for this thread anyway, and every stage waits for the copies.
  __device__ void load_window(ClusterTransactionBarrier& full, unsigned char* shared, int rows) {
    auto* barrier = reinterpret_cast<uint64_t*>(&full);
    const int box_rows = box_height_ * box_width_;
    for (int left = rows; left > 0; left -= box_rows) {
      load_box(barrier, shared);
      shared += box_rows * kSwizzleBytes;
      advance();
    }
    full.arrive_and_expect_tx(rows * kSwizzleBytes * Traits::kColumnGroups);
  }

  /// Fetches the next block of consecutive tokens, in the way of load_window().
  __device__ void load_tokens(ClusterTransactionBarrier& full, unsigned char* shared) {
    load_flat(reinterpret_cast<uint64_t*>(&full), shared);
    full.arrive_and_expect_tx(Traits::kStageBytes);
    token_ += Traits::kKeys;
  }

  /// Zeroes the rows from `first` on of this thread block's stage. The whole warp calls it.
  static __device__ void clean(unsigned char* shared, int first) {
#pragma unroll 1
    for (int i = first * 8 + threadIdx.x % 32; i < Traits::kKeys * 8; i += 32) {
      for (int group = 0; group < Traits::kColumnGroups; ++group) {
        reinterpret_cast<uint4*>(shared + group * kGroupBytes)[i] = uint4{};
      }
    }
    cutlass::arch::fence_view_async_shared();  // wgmma reads them through the asynchronous proxy
    __syncwarp();
  }

 private:
  static constexpr uint64_t kHint = static_cast<uint64_t>(cute::TMA::CacheHintSm90::EVICT_NORMAL);

  static constexpr int kGroupBytes = Traits::kKeys * kSwizzleBytes;  // of 64 columns
  static constexpr uint16_t kAll = (1 << Traits::kCluster) - 1;      // thread blocks of the cluster

  /// The groups of 64 columns that this thread block loads: one, for the whole cluster, or all, for itself.
  template <class Load>
  __device__ void for_each_group(const Load& load) const {
    load(first_group_);
    if (shared_) return;
#pragma unroll
    for (int group = 1; group < Traits::kColumnGroups; ++group) load(group);
  }

  __device__ void load_flat(uint64_t* barrier, unsigned char* shared) const {
    for_each_group([&](int group) {
      auto* target = shared + group * kGroupBytes;
      if (shared_) {
        cute::SM90_TMA_LOAD_MULTICAST_4D::copy(flat_, barrier, kAll, kHint, target, group * 64, token_, head_, sample_);
      } else {
        cute::SM90_TMA_LOAD_4D::copy(flat_, barrier, kHint, target, group * 64, token_, head_, sample_);
      }
    });
  }

  __device__ void load_box(uint64_t* barrier, unsigned char* shared) const {
    for_each_group([&](int group) {
      auto* target = shared + group * kGroupBytes;
      if (shared_) {
        cute::SM90_TMA_LOAD_MULTICAST_5D::copy(boxes_, barrier, kAll, kHint, target, group * 64, w_, h_, head_,
                                               sample_);
      } else {
        cute::SM90_TMA_LOAD_5D::copy(boxes_, barrier, kHint, target, group * 64, w_, h_, head_, sample_);
      }
    });
  }

  /// To the next box of the part, in raster order.
  __device__ void advance() {
    w_ += box_width_;
    if (w_ != w_end_) return;
    w_ -= width_;
    h_ += box_height_;
    if (h_ != h_end_) return;
    const int rows_of_frame = params_.problem.tiles.grid[1];
    h_ += rows_of_frame - height_;
    h_end_ += rows_of_frame;
  }

  const AttentionParams& params_;
  const KeyMaps& maps_;
  const CUtensorMap* flat_;
  bool shared_;  // every thread block of the cluster has these keys, too
  int first_group_;
  int head_, sample_;
  int token_ = 0;  // flat: the next one
  // The part of the window and its next box. Rows, h, are counted through all frames.
  const CUtensorMap* boxes_ = nullptr;
  int height_ = 0, width_ = 0, box_height_ = 0, box_width_ = 0;
  int h_ = 0, w_ = 0, h_end_ = 0, w_end_ = 0;
};

/// `routed`: there are heads that need the other maps, too.
__device__ inline void prefetch_maps(const KeyMaps& maps, bool routed) {
  cute::prefetch_tma_descriptor(&maps.flat);
  if (!routed) return;
  for (const CUtensorMap* map : {&maps.compact, &maps.grid[0][0]}) cute::prefetch_tma_descriptor(map);
}

/// Waits until the coreset selection is done, which was launched before this kernel and may still run. Everything that
/// it wrote is visible from here on. CUTLASS's wrapper is not used: it is empty unless a macro is set.
__device__ inline void wait_for_selection() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

/// The warp that keeps the ring of K full, or that of V: one piece of code for both, since the instructions of a cold
/// kernel come from memory.
template <class Traits>
__device__ void produce_blocks(const AttentionParams& params, SharedStorage<Traits>& shared, bool of_values) {
  static_assert(Traits::kKeyStages == Traits::kValueStages, "the rings are alike");
  auto* full = of_values ? shared.value_full : shared.key_full;
  auto* empty = of_values ? shared.value_empty : shared.key_empty;
  auto* stages = of_values ? shared.value : shared.key;
  const KeyMaps& maps = of_values ? params.value : params.key;
  const TensorView& tensor = of_values ? params.problem.value : params.problem.key;
  const bool leader = cute::elect_one_sync();
  RingPosition<Traits::kKeyStages> ring;
  for (RingPosition<kItemSlots> slot;; slot = slot.next()) {
    wait(shared.item_full[slot.stage], slot.parity);
    const WorkItem& item = shared.item[slot.stage];
    if (item.kind == ItemKind::kEnd) return;
    if (item.kind == ItemKind::kCoreset) wait_for_selection();
    KeyStream<Traits> stream(params, maps, tensor, item);
    int block = 0;
#pragma unroll 1
    for (int part = 0; part < WindowCut::kParts; ++part) {
      const KeyRun run = item.runs[part];
      if (block < run.end) stream.start_part(item, part);
      for (; block < run.end; ++block) {
        const int rows = block == run.end - 1 ? run.last_valid : run.valid;
        wait(empty[ring.stage], ring.parity ^ 1);
        if (of_values && rows < Traits::kKeys) stream.clean(stages[ring.stage], rows);
        if (leader) stream.load_window(full[ring.stage], stages[ring.stage], rows);
        ring = ring.next();
      }
    }
    const int key_blocks = item.key_blocks;
    for (; block < key_blocks; ++block) {
      wait(empty[ring.stage], ring.parity ^ 1);
      if (leader) stream.load_tokens(full[ring.stage], stages[ring.stage]);
      ring = ring.next();
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) shared.item_empty[slot.stage].arrive();
  }
}

/// Looks up and prefetches the rows of one consumer warpgroup, then gathers them.
template <class Traits>
__device__ void load_queries(const RoutedAttentionParams& problem, SharedStorage<Traits>& shared,
                             const QueryBlock& item, int slot, int warpgroup) {
  using Element = typename Traits::Element;
  constexpr int kChunks = Traits::kHeadDim / 8;  // of 16 bytes, in a row
  constexpr int kRowsPerPass = 32 / kChunks;
  const int lane = threadIdx.x % 32, chunk = lane % kChunks;
  const auto* query = static_cast<const Element*>(problem.query.data) + item.sample * problem.query.batch_stride +
                      item.head * problem.query.head_stride;
  int* tokens = shared.row_token[slot] + warpgroup * kRowsPerWarpgroup;
  for (int row = lane; row < kRowsPerWarpgroup; row += 32) {
    const int token = row_token(problem, item, warpgroup * kRowsPerWarpgroup + row);
    tokens[row] = token;
    if (token < 0) continue;
    const auto* source = query + token * problem.query.token_stride;
    for (int column = 0; column < Traits::kHeadDim; column += 64) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(source + column));
    }
  }
  __syncwarp();
  unsigned char* group =
      shared.query[slot] + chunk / 8 * (Traits::kRows * kSwizzleBytes) + warpgroup * kRowsPerWarpgroup * kSwizzleBytes;
#pragma unroll 4
  for (int pass = 0; pass < kRowsPerWarpgroup / kRowsPerPass; ++pass) {
    const int row = pass * kRowsPerPass + lane / kChunks;
    const int token = tokens[row];
    auto* target = reinterpret_cast<cute::uint128_t*>(group + row * kSwizzleBytes + ((chunk ^ row) % 8) * 16);
    // Rows that are not stored become zeros; products of zeros take the least power.
    const auto* source =
        reinterpret_cast<const cute::uint128_t*>(query + max(token, 0) * problem.query.token_stride + chunk * 8);
    cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<cute::uint128_t>::copy(*source, *target, token >= 0);
  }
  cute::cp_async_fence();
  if (item.kind == ItemKind::kCoreset) {
#pragma unroll 1
    for (int row = warpgroup * kRowsPerWarpgroup + lane; row < (warpgroup + 1) * kRowsPerWarpgroup; row += 32) {
      shared.row_copies[slot][row] = row_copies(problem, item, row);
    }
  }
  cute::cp_async_wait<0>();
  cutlass::arch::fence_view_async_shared();  // wgmma reads the rows through the asynchronous proxy
  shared.query_full[slot][warpgroup].arrive();
}

/// Gives all thread blocks of a cluster what the first one has `found`; `found` of the others is ignored. The whole
/// warp calls it, once for each slot.
template <class Traits>
__device__ Assignment share_assignment(const Assignment& found, SharedStorage<Traits>& shared, int rank,
                                       const RingPosition<kItemSlots>& slot) {
  if constexpr (Traits::kCluster == 1) return found;
  const int lane = threadIdx.x % 32;
  if (rank == 0) {
    wait(shared.assignment_empty[slot.stage], slot.parity ^ 1);
    if (lane > 0 && lane < Traits::kCluster) {
      const uint32_t target = cute::set_block_rank(cute::cast_smem_ptr_to_uint(&shared.assignment[slot.stage]), lane);
      const uint32_t barrier =
          cute::set_block_rank(cute::cast_smem_ptr_to_uint(&shared.assignment_full[slot.stage]), lane);
      asm volatile(
          "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.s32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
              target),
          "r"(static_cast<int>(found.kind)), "r"(found.head), "r"(found.block), "r"(found.text_length), "r"(barrier)
          : "memory");
    }
    return found;
  }
  if (lane == 0) shared.assignment_full[slot.stage].arrive_and_expect_tx(sizeof(Assignment));
  wait(shared.assignment_full[slot.stage], slot.parity);
  const int4 words = *reinterpret_cast<const int4*>(&shared.assignment[slot.stage]);
  __syncwarp();
  shared.assignment_empty[slot.stage].arrive(0, lane == 0);
  return {static_cast<ItemKind>(words.x), words.y, words.z, words.w};
}

/// The warps that gather query rows. The first of them also takes the work items, one ahead of the one computed: a
/// cluster begins with the item of its own number, and the counter goes on behind the last of those.
template <class Traits>
__device__ void produce_queries(const AttentionParams& params, SharedStorage<Traits>& shared) {
  const RoutedAttentionParams& problem = params.problem;
  const int warpgroup = threadIdx.x / 32 - kQueryWarp;
  const bool takes_items = warpgroup == 0;
  const int rank = cluster_rank<Traits>(), clusters = static_cast<int>(gridDim.x) / Traits::kCluster;
  const bool decides = takes_items && rank == 0;
  if (decides) {                                     // in shared memory, since this warp is short of registers
    const HeadCounts counts = count_heads(problem);  // the selection does not write routes: no need to wait
    if (threadIdx.x % 32 == 0) shared.counts = counts;
    __syncwarp();
  }
  int index = static_cast<int>(blockIdx.x) / Traits::kCluster;
  for (RingPosition<kItemSlots> slot;; slot = slot.next()) {
    if (takes_items) {
      Assignment assignment{};
      if (decides) assignment = assign_item(params, shared.counts, index);
      assignment = share_assignment(assignment, shared, rank, slot);
      const WorkItem item = make_work_item<Traits>(params, assignment, rank);
      wait(shared.item_empty[slot.stage], slot.parity ^ 1);
      if (threadIdx.x % 32 == 0) {
        shared.item[slot.stage] = item;
        shared.item_full[slot.stage].arrive();
      }
    }
    wait(shared.item_full[slot.stage], slot.parity);
    const WorkItem& item = shared.item[slot.stage];
    if (item.kind == ItemKind::kEnd) return wait_for_selection();
    if (item.kind == ItemKind::kCoreset) wait_for_selection();
    load_queries<Traits>(problem, shared, item, slot.stage, warpgroup);
    __syncwarp();
    if (decides && problem.work_counter == nullptr) {
      index += clusters;  // items are alike
    } else if (decides) {
      wait_for_selection();  // it clears the counter
      if (threadIdx.x % 32 == 0) index = clusters + static_cast<int>(atomicAdd(problem.work_counter, 1u));
      index = __shfl_sync(0xffffffffu, index, 0);
    } else if (!takes_items && threadIdx.x % 32 == 0) {
      shared.item_empty[slot.stage].arrive();
    }
  }
}

}  // namespace vorta::sm90

#endif  // VORTA_TRT_KERNELS_SM90_PRODUCER_CUH_
