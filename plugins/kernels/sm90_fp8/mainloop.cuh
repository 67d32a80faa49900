// SPDX-License-Identifier: Apache-2.0
//
// What a consumer warpgroup does with a work item. The softmax is what bounds, so nothing may keep it waiting:
//
//   S = Q K[j+1]^T   and   O += P V[j-1]   run on the tensor cores while P of block j is made from its S.
//
// Blocks of keys come in groups. The tensor cores add 8-bit products and the sum before with 13 bits behind the leading
// one of the largest of them, and cut the rest off, of every product: the longer a sum grows, the more is lost, 3 % of
// 2,560 weights alike. So the accumulator holds one group; the groups before are in `total`, in shared memory, in
// float32. Where a group begins, the shifts of the weights may sink.
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
  static constexpr int kGroupBlocks = 12;
  static constexpr int kFirstGroupBlocks = 2;  // with the first keys, which often stand out

  float output[kOutputs];

  __device__ Consumer(SharedStorage<Traits>& shared, int warpgroup) : shared_(shared), warpgroup_(warpgroup) {}

  /// Computes this warpgroup's rows of the item, normalized, into `output`.
  __device__ void attend(const RingPosition<kItemSlots>& slot, float scale_log2) {
    const int key_blocks = shared_.item[slot.stage].key_blocks;
    const uint64_t query = tile_descriptor<Traits::kHeadDim>(shared_.query[slot.stage] +
                                                             warpgroup_ * kRowsPerWarpgroup * Traits::kHeadDim);
    OnlineSoftmax softmax;
    uint32_t scores[2][Product::kScores];    // of the block in the softmax, and of the next one
    uint32_t weights[2][Product::kWeights];  // of the block in the softmax, and of the one that P V multiplies
    const auto issue_scores = [&](const RingPosition<Traits::kKeyStages>& ring, uint32_t (&of)[Product::kScores]) {
      wait(shared_.key_full[ring.stage], ring.parity);
      fence_accumulator(of);
      cute::warpgroup_arrive();
      Product::query_key(query, key_descriptor(ring), of);
      cute::warpgroup_commit_batch();
    };
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) output[i] = 0.0f;
    clear_total();

    wait(shared_.query_full[slot.stage][warpgroup_], slot.parity);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int index = warpgroup_ * kRowsPerWarpgroup + threadIdx.x / 32 % 4 * 16 + row * 8 + threadIdx.x % 32 / 4;
      softmax.row_factor[row] = scale_log2 * shared_.query_scale[slot.stage][index];
    }
    issue_scores(key_ring_, scores[0]);
    cute::warpgroup_wait<0>();
    fence_accumulator(scores[0]);

    // S of the next block and P V of the one before run while the weights of this one are made.
    const auto step = [&](auto parity, int block) {
      constexpr int kParity = decltype(parity)::value;
      auto& now = scores[kParity];
      const bool ends_group = kParity == 0 && (block % kGroupBlocks == 0 ? block > 0 : block == kFirstGroupBlocks);
      if (ends_group) lower(softmax);
      // After the last block it is computed again, for nothing: the compiler serializes products behind a branch.
      issue_scores(block + 1 < key_blocks ? key_ring_.next() : key_ring_, scores[1 - kParity]);
      finish_scores(now);
      softmax.weigh(now, notes(), weights[kParity]);
      // The wait for P V of the block before stands in both branches, in different words: else the compiler moves it up
      // in front of the weights that are made meanwhile.
      const bool exceeded = softmax.is_exceeded();  // in the first block, too
      if (exceeded || ends_group) {
        asm volatile("wgmma.wait_group.sync.aligned 0;  // and rescale" ::: "memory");
        fence_accumulator(output);
        fence_accumulator(scores[1 - kParity]);
        if (exceeded) {
          fence_accumulator(now);  // else the compiler keeps what both calls of weigh() have in common
          float correction[2];
          softmax.raise(now, notes(), correction);
#pragma unroll
          for (int i = 0; i < kOutputs; ++i) output[i] *= correction[row_of(i)];
          scale_total(correction);
          softmax.weigh(now, notes(), weights[kParity]);
        }
        if (ends_group) flush();
      } else {
        asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
        fence_accumulator(output);
      }
      if (block > 0) release_value(1);
      release_key();
      softmax.accept();
      wait(shared_.value_full[value_ring_.stage], value_ring_.parity);
      fence_accumulator(output);
      cute::warpgroup_arrive();
      Product::weight_value(weights[kParity], value_descriptor(), output);
      cute::warpgroup_commit_batch();
      value_ring_ = value_ring_.next();
      cute::warpgroup_wait<1>();
      fence_accumulator(scores[1 - kParity]);
    };
    int block = 0;
#pragma unroll 1
    while (true) {
      step(std::integral_constant<int, 0>{}, block);
      if (++block == key_blocks) break;
      step(std::integral_constant<int, 1>{}, block);
      if (++block == key_blocks) break;
    }
    cute::warpgroup_wait<0>();
    fence_accumulator(output);
    release_value(1);
#pragma unroll
    for (int i = 0; i < kOutputs; i += 4) {
      const float4 sum = total(i);
      output[i] += sum.x, output[i + 1] += sum.y, output[i + 2] += sum.z, output[i + 3] += sum.w;
    }
    softmax.normalize(output);
  }

  /// An item with no row of this warpgroup that has anything to attend to: its blocks are for the other warpgroup.
  __device__ void skip(const RingPosition<kItemSlots>& slot) {
    wait(shared_.query_full[slot.stage][warpgroup_], slot.parity);  // the tokens of the rows are there, too
    const int key_blocks = shared_.item[slot.stage].key_blocks;
    for (int block = 0; block < key_blocks; ++block) {
      wait(shared_.key_full[key_ring_.stage], key_ring_.parity);
      release_key();
      wait(shared_.value_full[value_ring_.stage], value_ring_.parity);
      release(shared_.value_empty[value_ring_.stage]);
      value_ring_ = value_ring_.next();
    }
  }

 private:
  __device__ uint64_t key_descriptor(const RingPosition<Traits::kKeyStages>& ring) const {
    return tile_descriptor<Traits::kHeadDim>(shared_.key[ring.stage]);
  }
  __device__ uint64_t value_descriptor() const { return tile_descriptor<kChunk>(shared_.value[value_ring_.stage]); }
  __device__ const ChunkNote* notes() const { return shared_.notes[key_ring_.stage]; }
  __device__ float2& lowered() { return shared_.lowered[warpgroup_][threadIdx.x % kThreadsPerWarpgroup]; }
  __device__ float4& total(int i) { return shared_.total[warpgroup_][i / 4][threadIdx.x % kThreadsPerWarpgroup]; }

  /// This warp is done with what the barrier guards.
  static __device__ void release(ClusterBarrier& barrier) {
    if (threadIdx.x % 32 == 0) barrier.arrive();
  }

  /// The block of V so many behind the next one.
  __device__ void release_value(int behind) {
    const int stage = value_ring_.stage - behind;
    release(shared_.value_empty[stage < 0 ? stage + Traits::kValueStages : stage]);
  }

  __device__ void release_key() {
    __syncwarp();  // every lane has read the notes
    release(shared_.key_empty[key_ring_.stage]);
    key_ring_ = key_ring_.next();
  }

  /// Takes out of the scores what is no key.
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

  __device__ void clear_total() {
#pragma unroll
    for (int i = 0; i < kOutputs; i += 4) total(i) = float4{};
  }

  /// For shifts that rise, in the middle of a group as well.
  __device__ void scale_total(const float (&factor)[2]) {
#pragma unroll 1
    for (int i = 0; i < kOutputs; i += 4) {
      float4 sum = total(i);
      sum.x *= factor[0], sum.y *= factor[0], sum.z *= factor[1], sum.w *= factor[1];
      total(i) = sum;
    }
  }

  /// The block that is next begins a group, which may have lower shifts than the one before.
  __device__ void lower(OnlineSoftmax& softmax) {
    float factor[2];
    softmax.lower(factor);
    lowered() = float2{factor[0], factor[1]};
  }

  /// Ends a group: moves its output into the total, and brings that to the shifts of the next group.
  __device__ void flush() {
    const float2 factor = lowered();
#pragma unroll
    for (int i = 0; i < kOutputs; i += 4) {
      float4 sum = total(i);
      sum.x = (sum.x + output[i]) * factor.x;
      sum.y = (sum.y + output[i + 1]) * factor.x;
      sum.z = (sum.z + output[i + 2]) * factor.y;
      sum.w = (sum.w + output[i + 3]) * factor.y;
      total(i) = sum;
      output[i] = output[i + 1] = output[i + 2] = output[i + 3] = 0.0f;
    }
  }

  SharedStorage<Traits>& shared_;
  const int warpgroup_;
  RingPosition<Traits::kKeyStages> key_ring_;      // of the block in the softmax
  RingPosition<Traits::kValueStages> value_ring_;  // of the block whose P is being made or multiplied next
};

}  // namespace vorta::sm90_fp8

#endif  // VORTA_TRT_KERNELS_SM90_FP8_MAINLOOP_CUH_
