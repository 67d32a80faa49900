// SPDX-License-Identifier: Apache-2.0
//
// The producer warpgroup. One warp copies the chunks of K with the bulk copy engine, one those of V; the others take
// work items, and round the query rows of the next one to int8 while the consumers are busy with this one.
#ifndef VORTA_TRT_KERNELS_SM90_FP8_PRODUCER_CUH_
#define VORTA_TRT_KERNELS_SM90_FP8_PRODUCER_CUH_

#include "../fp8/transform.cuh"
#include "cute/arch/cluster_sm90.hpp"
#include "cute/arch/copy_sm90_tma.hpp"
#include "shared_storage.cuh"

namespace vorta::sm90_fp8 {

/// Calls `copy(first, count, place)` for every run of consecutive chunks in the next block.
template <class Copy>
__device__ void for_each_run(fp8::ChunkList& chunks, const Copy& copy) {
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
    fp8::ChunkList chunks = chunks_of_item(params, item);
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

/// Looks up and prefetches the rows of one consumer warpgroup, loads them, transforms them as the keys were, and rounds
/// them to int8, every row with a scale of its own.
template <class Traits>
__device__ void load_queries(const AttentionParams& params, SharedStorage<Traits>& shared, const WorkItem& item,
                             int slot, int warpgroup) {
  using Element = typename Traits::Element;
  using Transform = fp8::RowTransform<Element, Traits::kHeadDim>;
  const RoutedAttentionParams& problem = params.pattern.problem;
  unsigned lane = threadIdx.x % 32;
  asm volatile("" : "+r"(lane));  // else what follows from it stays in registers from one item to the next
  const auto* query = static_cast<const Element*>(problem.query.data) + item.sample * problem.query.batch_stride +
                      item.head * problem.query.head_stride;
  for (int row = warpgroup * kRowsPerWarpgroup + lane; row < (warpgroup + 1) * kRowsPerWarpgroup; row += 32) {
    const int token = row_token(problem, item, row);
    shared.row_token[slot][row] = token;
    const auto* source = token < 0 ? nullptr : query + token * problem.query.token_stride;
    shared.row_source[row] = source;
    if (source == nullptr) continue;
    for (int column = 0; column < Traits::kHeadDim; column += 64) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(source + column));
    }
  }
  const int64_t head = int64_t{item.sample} * problem.heads + item.head;
  HeadVectors<Traits::kHeadDim>& vectors = shared.vectors[slot][warpgroup];
  constexpr int kLanes = Traits::kHeadDim / 8;  // 16 bytes each
  if (lane < 2 * kLanes) {
    const auto row = lane < kLanes ? fp8::kQueryFactor : fp8::kValueMean;
    uint16_t* target = lane < kLanes ? vectors.query_factor : vectors.value_mean;
    const uint16_t* from = params.images.statistics_of(head, Traits::kHeadDim, row);
    reinterpret_cast<uint4*>(target)[lane % kLanes] = __ldg(reinterpret_cast<const uint4*>(from) + lane % kLanes);
  }
  __syncwarp();
  const Transform transform(lane);
  const uint16_t* factor = vectors.query_factor + transform.first_channel();
  const unsigned first = warpgroup * kRowsPerWarpgroup + lane / Transform::kRowLanes;
  // Rows of one lane stand eight apart: their pieces stand at the same places of them.
  const int place = fp8::swizzled_piece<Traits::kHeadDim>(first, transform.image_piece(0));
#pragma unroll 1
  for (unsigned row = first; row < (warpgroup + 1) * kRowsPerWarpgroup; row += Transform::kRows) {
    const auto* source = static_cast<const Element*>(shared.row_source[row]);
    uint4 words[Transform::kPieces] = {};  // zeros for rows that are not stored: their products take the least power
    if (source != nullptr) {
#pragma unroll
      for (int piece = 0; piece < Transform::kPieces; ++piece) {
        words[piece] = __ldg(reinterpret_cast<const uint4*>(source + transform.first_channel()) +
                             piece * (Transform::kPieceStride / 8));
      }
    }
    uint32_t pairs[Transform::kPairs];
    transform(words, factor, nullptr, true, pairs);
    const float largest = fp8::largest_of<Transform::kRowLanes>(pairs);
    const float inverse = largest > 0.0f ? fp8::kLargestInt8 / largest : 0.0f;
    unsigned char* image = shared.query[slot] + row * Traits::kHeadDim;
#pragma unroll
    for (int piece = 0; piece < Transform::kImagePieces; ++piece) {
      *reinterpret_cast<uint4*>(image + (place ^ piece) * 16) = fp8::pack_int8(pairs + 8 * piece, inverse);
    }
    if (lane % Transform::kRowLanes == 0) {
      shared.query_scale[slot][row] = largest * (Transform::kProductFactor / fp8::kLargestInt8);
    }
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
    load_queries<Traits>(params, shared, item, slot.stage, warpgroup);
    __syncwarp();
    if (!takes_items && threadIdx.x % 32 == 0) shared.item_empty[slot.stage].arrive();
  }
}

}  // namespace vorta::sm90_fp8

#endif  // VORTA_TRT_KERNELS_SM90_FP8_PRODUCER_CUH_
