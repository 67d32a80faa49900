// SPDX-License-Identifier: Apache-2.0
//
// What a consumer warpgroup does: FlashAttention-3's loop (Shah et al. 2024) over blocks of keys,
//
//   S = Q K[j]^T   and   O += P V[j-1]   run on the tensor cores while P of block j is made from S,
//
// and the two warpgroups take turns: while one issues its products, the other one is in its softmax.
#ifndef VORTA_TRT_KERNELS_SM90_MAINLOOP_CUH_
#define VORTA_TRT_KERNELS_SM90_MAINLOOP_CUH_

#include "epilogue.cuh"
#include "softmax.cuh"
#include "wgmma.cuh"

namespace vorta::sm90 {

/// The warpgroups' turns at the tensor cores.
template <class Traits>
struct Turns {
  static constexpr int kThreads = 2 * kThreadsPerWarpgroup;
  int warpgroup;

  /// Once per kernel: the first warpgroup starts.
  __device__ void start() const {
    if (warpgroup == Traits::kConsumers - 1) pass();
  }
  __device__ void take() const { NamedBarrier::sync(kThreads, kTurn + warpgroup); }
  __device__ void pass() const { NamedBarrier::arrive(kThreads, kTurn + (warpgroup + 1) % Traits::kConsumers); }
};

template <class Traits>
class Consumer {
 public:
  using Element = typename Traits::Element;
  using Product = Products<Traits>;
  static constexpr int kKeys = Traits::kKeys;
  static constexpr int kOutputs = Product::kOutputs;
  // First blocks of an item in which the shift is the exact maximum, see OnlineSoftmax. Short rows, with fewer than
  // kShort blocks, have more of them, because a single weight counts for more there.
  static constexpr int kExactBlocks = 4, kExactBlocksOfShort = 16, kShort = 32;

  __device__ Consumer(const AttentionParams& params, SharedStorage<Traits>& shared, int warpgroup)
      : params_(params), shared_(shared), turns_{warpgroup} {
    turns_.start();
  }

  /// Computes and stores this warpgroup's rows of all items. One item runs into the next: the last P V of one is issued
  /// together with the first Q K^T of the other, so that the tensor cores have no gap between them.
  __device__ void run() {
    OnlineSoftmax softmax(params_.problem.scale_log2);
    float scores[Product::kScores], output[kOutputs];
    // P of the block before is read by the tensor cores while that of this block is made: its early part goes into
    // registers of its own, the late part has to wait for P V.
    uint32_t early[2][Product::kEarlyScores / 2], late[Product::kLateScores / 2];
    const auto weigh_early = [&](uint32_t (&weights)[Product::kEarlyScores / 2]) {
      softmax.template weigh<Element, 0, Product::kEarlyScores, false>(scores, weights);
    };
    const auto weigh_late = [&] {
      softmax.template weigh<Element, Product::kEarlyScores, Product::kLateScores, true>(scores, late);
    };
    const auto rescale = [&](const float (&factor)[2]) {
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) output[i] *= factor[row_of(i)];
    };
    const auto clear = [&] {
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) output[i] = 0.0f;
    };
    const auto issue_scores = [&](uint64_t query) {
      wait(shared_.key_full[key_ring_.stage], key_ring_.parity);
      turns_.take();
      fence_accumulator(output);
      fence_accumulator(scores);
      cute::warpgroup_arrive();
      Product::query_key(query, key_descriptor(), scores);
      cute::warpgroup_commit_batch();
    };
    // S of this block, and O += P V of the one before, whose P is in `before` and `late`.
    const auto issue = [&](uint64_t query, const uint32_t (&before)[Product::kEarlyScores / 2]) {
      wait(shared_.value_full[value_ring_.stage], value_ring_.parity);
      issue_scores(query);
      Product::weight_value(before, late, value_descriptor(), output);
      cute::warpgroup_commit_batch();
      turns_.pass();
      value_ring_ = value_ring_.next();
      cute::warpgroup_wait<1>();
    };
    const auto step = [&](const WorkItem& item, uint64_t query, int key_blocks, int first_partial, int block,
                          const uint32_t (&before)[Product::kEarlyScores / 2],
                          uint32_t (&after)[Product::kEarlyScores / 2]) {
      issue(query, before);
      finish_scores(item, first_partial, block, scores);
      const bool exact = block < (key_blocks < kShort ? kExactBlocksOfShort : kExactBlocks);
      float correction[2];
      if (exact) softmax.raise(scores, correction);
      weigh_early(after);
      // The wait for P V stands in both branches, in different words: else the compiler moves it up in front of the
      // weights that are made meanwhile.
      if (exact) {
        asm volatile("wgmma.wait_group.sync.aligned 0;  // and rescale" ::: "memory");
        fence_accumulator(output);
        rescale(correction);
      } else {
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        fence_accumulator(output);
      }
      release(shared_.value_empty[value_ring_.before()]);
      weigh_late();
      if (!exact && softmax.is_exceeded(key_blocks)) {
        softmax.raise(scores, correction);
        rescale(correction);
        weigh_early(after);
        weigh_late();
      }
      softmax.accept();
    };

    RingPosition<kItemSlots> slot;
    int unfinished = -1;  // slot of the item whose last P, in early[0] and late, waits for its V
    const auto store = [&](int of) {
      store_rows<Traits>(params_.problem, shared_.item[of], turns_.warpgroup, output, shared_.row_token[of],
                         [&](int row) { return shared_.row_copies[of][row]; });
      release_item(of);
    };
    const auto finish = [&] {
      wait(shared_.value_full[value_ring_.stage], value_ring_.parity);
      fence_accumulator(output);
      cute::warpgroup_arrive();
      Product::weight_value(early[0], late, value_descriptor(), output);
      cute::warpgroup_commit_batch();
      value_ring_ = value_ring_.next();
      float inverse[2];
      softmax.restart(inverse);
      cute::warpgroup_wait<0>();
      fence_accumulator(output);
      release(shared_.value_empty[value_ring_.before()]);
      rescale(inverse);
      store(unfinished);
      unfinished = -1;
    };

#pragma unroll 1
    for (;; slot = slot.next()) {
      wait(shared_.item_full[slot.stage], slot.parity);
      const WorkItem& item = shared_.item[slot.stage];
      const bool attends =
          item.kind != ItemKind::kEnd && item.key_blocks > 0 && item.rows > turns_.warpgroup * kRowsPerWarpgroup;
      if (!attends && unfinished >= 0) finish();
      if (item.kind == ItemKind::kEnd) return;
      wait(shared_.query_full[slot.stage][turns_.warpgroup], slot.parity);
      if (!attends) {
        skip(item);
        store_zeros<Traits>(params_.problem, item, turns_.warpgroup, shared_.row_token[slot.stage]);
        release_item(slot.stage);
        continue;
      }
      const uint64_t query =
          tile_descriptor(shared_.query[slot.stage] + turns_.warpgroup * kRowsPerWarpgroup * kSwizzleBytes, 0);
      const int key_blocks = item.key_blocks, first_partial = item.first_partial;
      if (unfinished < 0) {
        clear();
        issue_scores(query);
        turns_.pass();
        cute::warpgroup_wait<0>();
        finish_scores(item, first_partial, 0, scores);
        softmax.raise(scores);
        weigh_early(early[1]);
        weigh_late();
      } else {
        issue(query, early[0]);
        finish_scores(item, first_partial, 0, scores);
        float inverse[2];
        softmax.restart(inverse);
        softmax.raise(scores);
        weigh_early(early[1]);
        asm volatile("wgmma.wait_group.sync.aligned 0;  // and store" ::: "memory");
        fence_accumulator(output);
        release(shared_.value_empty[value_ring_.before()]);
        weigh_late();
        rescale(inverse);
        store(unfinished);
        clear();
      }
      softmax.accept();
      unfinished = slot.stage;
#pragma unroll 1
      for (int block = 1; block < key_blocks; block += 2) {
        step(item, query, key_blocks, first_partial, block, early[1], early[0]);
        if (block + 1 == key_blocks) break;
        step(item, query, key_blocks, first_partial, block + 1, early[0], early[1]);
      }
      if (key_blocks % 2 == 1) {
#pragma unroll
        for (int i = 0; i < Product::kEarlyScores / 2; ++i) early[0][i] = early[1][i];
      }
    }
  }

 private:
  /// Skips an item in which no row of this warpgroup has anything to attend to, and passes its turns on.
  __device__ void skip(const WorkItem& item) {
    for (int block = 0; block < item.key_blocks; ++block) {
      turns_.take();
      turns_.pass();
      wait(shared_.key_full[key_ring_.stage], key_ring_.parity);
      release(shared_.key_empty[key_ring_.stage]);
      key_ring_ = key_ring_.next();
      wait(shared_.value_full[value_ring_.stage], value_ring_.parity);
      if (item.is_dirty(block)) clean_values(item.last_valid());
      release(shared_.value_empty[value_ring_.stage]);
      value_ring_ = value_ring_.next();
    }
  }

  __device__ uint64_t key_descriptor() const { return tile_descriptor(shared_.key[key_ring_.stage], 0); }
  __device__ uint64_t value_descriptor() const {
    return tile_descriptor(shared_.value[value_ring_.stage], kKeys * kSwizzleBytes);
  }

  /// This warp is done with what the barrier guards, which every thread block of the cluster may write.
  static __device__ void release(ClusterBarrier& barrier) {
    __syncwarp();
    if constexpr (Traits::kCluster == 1) {
      if (threadIdx.x % 32 == 0) barrier.arrive();
    } else {
      barrier.arrive(threadIdx.x % 32, threadIdx.x % 32 < Traits::kCluster);
    }
  }

  /// This warp is done with an item: what the slot holds, its query rows included, may be replaced.
  __device__ void release_item(int slot) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) shared_.item_empty[slot].arrive();
  }

  /// Frees the block of K that the scores were computed from, and takes out of them what is no key.
  __device__ void finish_scores(const WorkItem& item, int first_partial, int block, float (&scores)[Product::kScores]) {
    fence_accumulator(scores);
    release(shared_.key_empty[key_ring_.stage]);
    key_ring_ = key_ring_.next();
    if (block < first_partial) return;
    const int valid = item.valid_keys(block);
    if (valid < kKeys) {
      mask_columns(scores, valid);
      if (item.is_dirty(block)) clean_values(valid);
    }
  }

  /// Zeroes the rows of the block of V that belongs to the scores from `valid` on: their weights are 0, but 0 times NaN
  /// is NaN.
  __device__ void clean_values(int valid) {
    wait(shared_.value_full[value_ring_.stage], value_ring_.parity);
    constexpr int kThreads = Traits::kConsumers * kThreadsPerWarpgroup;
    const int thread = threadIdx.x - kThreadsPerWarpgroup;
    for (int group = 0; group < Traits::kColumnGroups; ++group) {
      auto* rows = reinterpret_cast<uint4*>(shared_.value[value_ring_.stage] + group * kKeys * kSwizzleBytes);
      for (int i = valid * 8 + thread; i < kKeys * 8; i += kThreads) rows[i] = uint4{0, 0, 0, 0};
    }
    cutlass::arch::fence_view_async_shared();
    NamedBarrier::sync(kThreads, kCleaned);
  }

  const AttentionParams& params_;
  SharedStorage<Traits>& shared_;
  Turns<Traits> turns_;
  RingPosition<Traits::kKeyStages> key_ring_;
  RingPosition<Traits::kValueStages> value_ring_;  // of the block whose P is being made or multiplied next
};

}  // namespace vorta::sm90

#endif  // VORTA_TRT_KERNELS_SM90_MAINLOOP_CUH_
