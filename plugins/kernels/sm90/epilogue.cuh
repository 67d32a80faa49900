// SPDX-License-Identifier: Apache-2.0
//
// The output rows from the accumulators to global memory: each to its own token, a bucket centre's also to the tokens
// dropped from its bucket, and zeros to padded text. No shared memory: the next item's queries are already on their way
// there.
#ifndef VORTA_TRT_KERNELS_SM90_EPILOGUE_CUH_
#define VORTA_TRT_KERNELS_SM90_EPILOGUE_CUH_

#include "shared_storage.cuh"
#include "softmax.cuh"

namespace vorta::sm90 {

/// Transposes a 4 x 4 matrix whose columns lie in four neighbouring lanes: afterwards word i is what lane i of the four
/// had as its word lane % 4.
__device__ inline void transpose_in_quad(uint32_t (&words)[4]) {
  const int lane = threadIdx.x % 4;
#pragma unroll
  for (int bit = 1; bit <= 2; bit *= 2) {
#pragma unroll
    for (int low = 0; low < 4; ++low) {
      if (low & bit) continue;
      const int high = low | bit;
      const bool upper = lane & bit;
      const uint32_t sent = upper ? words[low] : words[high];
      const uint32_t received = __shfl_xor_sync(0xffffffffu, sent, bit);
      words[low] = upper ? received : words[low];
      words[high] = upper ? words[high] : received;
    }
  }
}

/// Where the dropped tokens of the bucket whose centre stands in `row` are listed; `count` is 0 for other rows.
struct Copies {
  const int32_t* tokens = nullptr;
  int count = 0;

  __device__ Copies(const RoutedAttentionParams& problem, const WorkItem& item, int row) {
    const int position = item.first_row + row;
    if (item.kind != ItemKind::kCoreset || position >= problem.kept_tokens) return;
    int bucket, slot;
    problem.keep(bucket, slot, position);
    if (slot != 0) return;
    count = problem.buckets.tokens.divisor - problem.keep.divisor;
    const int64_t head = int64_t{item.sample} * problem.heads + item.head;
    tokens = problem.dropped_queries + head * (problem.video_tokens - problem.kept_tokens) + int64_t{bucket} * count;
  }
};

/// output: the accumulator of this warpgroup's 64 rows; every lane stores 16-byte chunks of two rows.
template <class Traits>
__device__ void store_rows(const RoutedAttentionParams& problem, const WorkItem& item, int warpgroup,
                           const float (&output)[Traits::kHeadDim / 2], const int* row_token) {
  using Element = typename Traits::Element;
  constexpr int kChunks = Traits::kHeadDim / 32;  // of 16 bytes, of a lane in one row
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const TensorView& view = problem.output;
  auto* column = static_cast<Element*>(const_cast<void*>(view.data)) + item.sample * view.batch_stride +
                 item.head * view.head_stride + lane % 4 * 8;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = warpgroup * kRowsPerWarpgroup + warp * 16 + half * 8 + lane / 4;
    const int token = row_token[row];
    uint32_t words[kChunks][4];
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* pair = output + 4 * (4 * chunk + i) + 2 * half;
        words[chunk][i] = pack<Element>(pair[0], pair[1]);
      }
      transpose_in_quad(words[chunk]);
    }
    if (token == kNoRow) continue;
    const auto store = [&](int to, bool zeros) {
      auto* target = column + to * view.token_stride;
#pragma unroll
      for (int chunk = 0; chunk < kChunks; ++chunk) {
        const auto& w = words[chunk];
        *reinterpret_cast<uint4*>(target + chunk * 32) = zeros ? uint4{0, 0, 0, 0} : uint4{w[0], w[1], w[2], w[3]};
      }
    };
    store(token < 0 ? ~token : token, token < 0);
    const Copies copies(problem, item, row);
    for (int i = 0; i < copies.count; ++i) store(copies.tokens[i], false);
  }
}

}  // namespace vorta::sm90

#endif  // VORTA_TRT_KERNELS_SM90_EPILOGUE_CUH_
