// SPDX-License-Identifier: Apache-2.0
//
// The producer warpgroup. One warp copies the chunks of K with the bulk copy engine, one those of V; the others take
// work items, and round the query rows of the next one to int8 while the consumers are busy with this one.
#ifndef VORTA_TRT_KERNELS_SM90_FP8_PRODUCER_CUH_
#define VORTA_TRT_KERNELS_SM90_FP8_PRODUCER_CUH_

#include "cute/arch/cluster_sm90.hpp"
#include "cute/arch/copy_sm90_tma.hpp"
#include "elements.cuh"
#include "shared_storage.cuh"

namespace vorta::sm90_fp8 {

/// Calls `copy(first, count, place)` for every run of consecutive chunks in the next block.
template <class Copy>
__device__ void for_each_run(ChunkList& chunks, const Copy& copy) {
  int first = chunks.next(), count = 1, place = 0;
#pragma unroll 1
  for (int i = 1; i < kChunks; ++i) {
    const int chunk = chunks.next();
    if (chunk == first + count) {
      ++count;
      continue;
    }
    copy(first, count, place);
    place += count;
    first = chunk;
    count = 1;
  }
  copy(first, count, place);
}

/// The warp that keeps the ring of K full, or that of V; notes come with K.
template <class Traits>
__device__ void produce_blocks(const AttentionParams& params, SharedStorage<Traits>& shared, bool of_values) {
  static_assert(Traits::kKeyStages == Traits::kValueStages, "the rings are alike");
  auto* full_barriers = of_values ? shared.value_full : shared.key_full;
  auto* empty = of_values ? shared.value_empty : shared.key_empty;
  auto* stages = of_values ? shared.value : shared.key;
  const unsigned bytes = Traits::kStageBytes + (of_values ? 0 : kChunks * kChunkNoteBytes);
  const bool leader = cute::elect_one_sync();
  RingPosition<Traits::kKeyStages> ring;
  for (RingPosition<kItemSlots> slot;; slot = slot.next()) {
    wait(shared.item_full[slot.stage], slot.parity);
    const WorkItem& item = shared.item[slot.stage];
    if (item.kind == ItemKind::kEnd) return;
    ChunkList chunks(params, item);
    const auto* images = (of_values ? params.images.value : params.images.key) + item.first_chunk * Traits::kChunkBytes;
    const ChunkNote* notes = params.images.notes + item.first_chunk;
    const int key_blocks = item.key_blocks;
    for (int block = 0; block < key_blocks; ++block) {
      wait(empty[ring.stage], ring.parity ^ 1);
      if (leader) {
        auto& full = full_barriers[ring.stage];
        auto* barrier = reinterpret_cast<uint64_t*>(&full);
        full.arrive_and_expect_tx(bytes);
        for_each_run(chunks, [&](int first, int count, int place) {
          cute::SM90_BULK_COPY_G2S::copy(images + int64_t{first} * Traits::kChunkBytes, barrier,
                                         stages[ring.stage] + place * Traits::kChunkBytes, count * Traits::kChunkBytes);
          if (of_values) return;
          cute::SM90_BULK_COPY_G2S::copy(notes + first, barrier, shared.notes[ring.stage] + place,
                                         count * kChunkNoteBytes);
        });
      }
      ring = ring.next();
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) shared.item_empty[slot.stage].arrive();
  }
}

/// Looks up and prefetches the rows of one consumer warpgroup, loads them, and rounds them to int8, every row with
/// a scale of its own.
template <class Traits>
__device__ void load_queries(const RoutedAttentionParams& problem, SharedStorage<Traits>& shared, const WorkItem& item,
                             int slot, int warpgroup) {
  using Element = typename Traits::Element;
  constexpr int kRowLanes = Traits::kHeadDim / 8;  // 16 bytes of the row to each
  constexpr int kRowsPerPass = 32 / kRowLanes;
  const int lane = threadIdx.x % 32, in_row = lane % kRowLanes;
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
  unsigned char* rows = shared.query[slot] + warpgroup * kRowsPerWarpgroup * Traits::kHeadDim;
#pragma unroll 4
  for (int pass = 0; pass < kRowsPerWarpgroup / kRowsPerPass; ++pass) {
    const int row = pass * kRowsPerPass + lane / kRowLanes;
    const int token = tokens[row];
    uint4 words{};  // of rows that are not stored; products of zeros take the least power
    if (token >= 0) words = __ldg(reinterpret_cast<const uint4*>(query + token * problem.query.token_stride) + in_row);
    const float2 x[4] = {unpack<Element>(words.x), unpack<Element>(words.y), unpack<Element>(words.z),
                         unpack<Element>(words.w)};
    float largest = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) largest = fmaxf(largest, fmaxf(fabsf(x[i].x), fabsf(x[i].y)));
#pragma unroll
    for (int bit = kRowLanes / 2; bit > 0; bit /= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, bit));
    }
    const float inverse = largest > 0.0f ? 127.0f / largest : 0.0f;
    uint32_t bytes[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) bytes[i] = pack_int8(x[2 * i], x[2 * i + 1], inverse);
    *reinterpret_cast<uint2*>(rows + row * Traits::kHeadDim + swizzled_piece<Traits::kHeadDim>(row, in_row / 2) * 16 +
                              in_row % 2 * 8) = uint2{bytes[0], bytes[1]};
    if (in_row == 0) shared.query_scale[slot][warpgroup * kRowsPerWarpgroup + row] = largest / 127.0f;
  }
  cutlass::arch::fence_view_async_shared();  // wgmma reads the rows through the asynchronous proxy
  shared.query_full[slot][warpgroup].arrive();
}

/// The warps that load query rows. The first of them also takes the work items, one ahead of the one computed.
template <class Traits>
__device__ void produce_queries(const AttentionParams& params, SharedStorage<Traits>& shared) {
  const RoutedAttentionParams& problem = params.pattern.problem;
  const int warpgroup = threadIdx.x / 32 - sm90::kQueryWarp;
  const bool takes_items = warpgroup == 0;
  const sm90::HeadCounts counts = sm90::count_heads(problem);
  for (RingPosition<kItemSlots> slot;; slot = slot.next()) {
    if (takes_items) {
      int index = 0;
      if (threadIdx.x % 32 == 0) index = static_cast<int>(atomicAdd(problem.work_counter, 1u));
      index = __shfl_sync(0xffffffffu, index, 0);
      const WorkItem item = make_work_item<Traits>(params, counts, index);
      wait(shared.item_empty[slot.stage], slot.parity ^ 1);
      if (threadIdx.x % 32 == 0) {
        shared.item[slot.stage] = item;
        shared.item_full[slot.stage].arrive();
      }
    }
    wait(shared.item_full[slot.stage], slot.parity);
    const WorkItem& item = shared.item[slot.stage];
    if (item.kind == ItemKind::kEnd) return;
    load_queries<Traits>(problem, shared, item, slot.stage, warpgroup);
    __syncwarp();
    if (!takes_items && threadIdx.x % 32 == 0) shared.item_empty[slot.stage].arrive();
  }
}

}  // namespace vorta::sm90_fp8

#endif  // VORTA_TRT_KERNELS_SM90_FP8_PRODUCER_CUH_
