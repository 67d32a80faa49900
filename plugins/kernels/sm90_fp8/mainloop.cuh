// SPDX-License-Identifier: Apache-2.0
//
// What a consumer warpgroup does with a work item: the loop of sm90/mainloop.cuh, with 8-bit products. All weights of a
// block have registers of their own beside those that P V reads.
#ifndef VORTA_TRT_KERNELS_SM90_FP8_MAINLOOP_CUH_
#define VORTA_TRT_KERNELS_SM90_FP8_MAINLOOP_CUH_

#include "softmax.cuh"
#include "wgmma.cuh"

namespace vorta::sm90_fp8 {

template <class Traits>
class Consumer {
 public:
  using Product = Products<Traits>;
  static constexpr int kOutputs = Product::kOutputs;
  static constexpr int kFlushBlocks = 16;  // see flush()

  float output[kOutputs];

  __device__ Consumer(SharedStorage<Traits>& shared, int warpgroup) : shared_(shared), warpgroup_(warpgroup) {
    if (warpgroup == Traits::kConsumers - 1) pass_turn();  // the first warpgroup starts
  }

  /// Computes this warpgroup's rows of the item, normalized, into `output`.
  __device__ void attend(const RingPosition<kItemSlots>& slot, float scale_log2) {
    const int key_blocks = shared_.item[slot.stage].key_blocks;
    const uint64_t query = tile_descriptor<Traits::kHeadDim>(shared_.query[slot.stage] +
                                                             warpgroup_ * kRowsPerWarpgroup * Traits::kHeadDim);
    OnlineSoftmax softmax;
    uint32_t scores[Product::kScores];
    uint32_t weights[2][Product::kWeights];  // of the block that P V multiplies, and of the one in the softmax
    const auto rescale = [&] {
      float correction[2];
      softmax.raise(scores, notes(), correction);
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) output[i] *= correction[row_of(i)];
      if (flushed_) {
#pragma unroll 8
        for (int i = 0; i < kOutputs; ++i) total(i) *= correction[row_of(i)];
      }
    };
    flushed_ = false;
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) output[i] = 0.0f;

    wait(shared_.query_full[slot.stage][warpgroup_], slot.parity);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int index = warpgroup_ * kRowsPerWarpgroup + threadIdx.x / 32 % 4 * 16 + row * 8 + threadIdx.x % 32 / 4;
      softmax.row_factor[row] = scale_log2 * shared_.query_scale[slot.stage][index];
    }
    wait(shared_.key_full[key_ring_.stage], key_ring_.parity);
    cute::warpgroup_arrive();
    Product::query_key(query, key_descriptor(), scores);
    cute::warpgroup_commit_batch();
    cute::warpgroup_wait<0>();
    finish_scores(scores);
    rescale();
    softmax.weigh(scores, notes(), weights[0]);
    softmax.accept();
    release_key();

    const auto step = [&](uint32_t (&before)[Product::kWeights], uint32_t (&after)[Product::kWeights], int block) {
      wait(shared_.key_full[key_ring_.stage], key_ring_.parity);
      wait(shared_.value_full[value_ring_.stage], value_ring_.parity);
      take_turn();
      fence_accumulator(output);
      fence_accumulator(scores);
      cute::warpgroup_arrive();
      Product::query_key(query, key_descriptor(), scores);
      cute::warpgroup_commit_batch();
      Product::weight_value(before, value_descriptor(), output);
      cute::warpgroup_commit_batch();
      pass_turn();
      value_ring_ = value_ring_.next();
      cute::warpgroup_wait<1>();
      finish_scores(scores);
      softmax.weigh(scores, notes(), after);
      // The wait for P V stands in both branches, in different words: else the compiler moves it up in front of the
      // weights that are made meanwhile.
      if (softmax.is_exceeded()) {
        asm volatile("wgmma.wait_group.sync.aligned 0;  // and rescale" ::: "memory");
        fence_accumulator(output);
        fence_accumulator(scores);  // else the compiler keeps what both calls of weigh() have in common
        rescale();
        softmax.weigh(scores, notes(), after);
      } else {
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        fence_accumulator(output);
      }
      release(shared_.value_empty[value_ring_.before()]);
      release_key();
      softmax.accept();
      if (block % kFlushBlocks == 0) flush();
    };
    const auto finish = [&](const uint32_t (&before)[Product::kWeights]) {
      wait(shared_.value_full[value_ring_.stage], value_ring_.parity);
      fence_accumulator(output);
      cute::warpgroup_arrive();
      Product::weight_value(before, value_descriptor(), output);
      cute::warpgroup_commit_batch();
      value_ring_ = value_ring_.next();
      cute::warpgroup_wait<0>();
      fence_accumulator(output);
      release(shared_.value_empty[value_ring_.before()]);
    };

    int block = 1;
#pragma unroll 1
    for (; block + 1 < key_blocks; block += 2) {
      step(weights[0], weights[1], block);
      step(weights[1], weights[0], block + 1);
    }
    if (block < key_blocks) {
      step(weights[0], weights[1], block);
      finish(weights[1]);
    } else {
      finish(weights[0]);
    }
    if (flushed_) {
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) output[i] += total(i);
    }
    softmax.normalize(output);
  }

  /// Skips an item in which no row of this warpgroup has anything to attend to, and passes its turns on.
  __device__ void skip(const RingPosition<kItemSlots>& slot) {
    wait(shared_.query_full[slot.stage][warpgroup_], slot.parity);  // the tokens of the rows are there, too
    const int key_blocks = shared_.item[slot.stage].key_blocks;
    for (int block = 0; block < key_blocks; ++block) {
      if (block > 0) take_turn();
      if (block > 0) pass_turn();
      wait(shared_.key_full[key_ring_.stage], key_ring_.parity);
      release_key();
      wait(shared_.value_full[value_ring_.stage], value_ring_.parity);
      release(shared_.value_empty[value_ring_.stage]);
      value_ring_ = value_ring_.next();
    }
  }

 private:
  __device__ void take_turn() const { NamedBarrier::sync(2 * kThreadsPerWarpgroup, sm90::kTurn + warpgroup_); }
  __device__ void pass_turn() const {
    NamedBarrier::arrive(2 * kThreadsPerWarpgroup, sm90::kTurn + (warpgroup_ + 1) % Traits::kConsumers);
  }

  __device__ uint64_t key_descriptor() const { return tile_descriptor<Traits::kHeadDim>(shared_.key[key_ring_.stage]); }
  __device__ uint64_t value_descriptor() const { return tile_descriptor<kChunk>(shared_.value[value_ring_.stage]); }
  __device__ const ChunkNote* notes() const { return shared_.notes[key_ring_.stage]; }
  __device__ float& total(int i) { return shared_.total[warpgroup_][i][threadIdx.x % kThreadsPerWarpgroup]; }

  /// This warp is done with what the barrier guards.
  static __device__ void release(ClusterBarrier& barrier) {
    if (threadIdx.x % 32 == 0) barrier.arrive();
  }

  __device__ void release_key() {
    __syncwarp();  // every lane has read the notes
    release(shared_.key_empty[key_ring_.stage]);
    key_ring_ = key_ring_.next();
  }

  /// Takes columns that are no keys out of the scores.
  __device__ void finish_scores(uint32_t (&scores)[Product::kScores]) {
    fence_accumulator(scores);
    int valid = kChunk;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) valid = min(valid, notes()[chunk].valid);
    if (valid == kChunk) return;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      const int limit = notes()[chunk].valid - 2 * (threadIdx.x % 4);
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        if (8 * (i / 4) + i % 2 >= limit) scores[16 * chunk + i] = OnlineSoftmax::kMasked;
      }
    }
  }

  /// Moves the output into shared memory. The tensor cores keep some 14 bits of a sum of 8-bit products and truncate
  /// the rest: over thousands of steps the output would lose its value.
  __device__ void flush() {
    if (flushed_) {
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) total(i) += output[i];
    } else {
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) total(i) = output[i];
    }
    flushed_ = true;
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) output[i] = 0.0f;
  }

  SharedStorage<Traits>& shared_;
  const int warpgroup_;
  RingPosition<Traits::kKeyStages> key_ring_;
  RingPosition<Traits::kValueStages> value_ring_;  // of the block whose P is being made or multiplied next
  bool flushed_ = false;                           // shared_.total is part of the output
};

}  // namespace vorta::sm90_fp8

#endif  // VORTA_TRT_KERNELS_SM90_FP8_MAINLOOP_CUH_
