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

/// output: the accumulator of this warpgroup's 64 rows. Two neighbouring lanes exchange words, so that each has 8 bytes
/// of a row and four lanes a whole sector of 32. `copies_of(row)`: the Copies of a coreset item's row.
template <class Traits, class CopiesOf>
__device__ void store_rows(const RoutedAttentionParams& problem, const QueryBlock& item, int warpgroup,
                           const float (&output)[Traits::kHeadDim / 2], const int* row_token,
                           const CopiesOf& copies_of) {
  using Element = typename Traits::Element;
  constexpr int kSectors = Traits::kHeadDim / 16;  // of a row
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const bool odd = lane % 2;
  const int64_t head = int64_t{item.sample} * problem.heads + item.head;
  const int32_t* dropped = problem.dropped_queries + head * problem.buckets.dropped_tokens;
  const TensorView& view = problem.output;
  auto* column = static_cast<Element*>(const_cast<void*>(view.data)) + item.sample * view.batch_stride +
                 item.head * view.head_stride + lane % 2 * 8 + lane % 4 / 2 * 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = warpgroup * kRowsPerWarpgroup + warp * 16 + half * 8 + lane / 4;
    const int token = row_token[row];
    uint2 words[kSectors];
#pragma unroll
    for (int sector = 0; sector < kSectors; ++sector) {
      const float* pairs = output + 8 * sector + 2 * half;  // of columns 16 sector + {0, 8} + 2 (lane % 4) + {0, 1}
      const uint32_t low = pack<Element>(pairs[0], pairs[1]), high = pack<Element>(pairs[4], pairs[5]);
      const uint32_t received = __shfl_xor_sync(0xffffffffu, odd ? low : high, 1);
      words[sector] = odd ? uint2{received, high} : uint2{low, received};
      if (token < 0) words[sector] = uint2{0, 0};
    }
    if (token == kNoRow) continue;
    const Copies more = item.kind == ItemKind::kCoreset ? copies_of(row) : Copies{0, 0};
    int to = token < 0 ? ~token : token;
    for (int i = 0;; ++i) {
      auto* target = column + to * view.token_stride;
#pragma unroll
      for (int sector = 0; sector < kSectors; ++sector) *reinterpret_cast<uint2*>(target + sector * 16) = words[sector];
      if (i == more.count) break;
      to = listed_token(problem, dropped + more.first + i);
    }
  }
}

/// Stores the rows in the same way, and looks up the copies of each row when it is stored.
template <class Traits>
__device__ void store_rows(const RoutedAttentionParams& problem, const QueryBlock& item, int warpgroup,
                           const float (&output)[Traits::kHeadDim / 2], const int* row_token) {
  store_rows<Traits>(problem, item, warpgroup, output, row_token,
                     [&](int row) { return row_copies(problem, item, row); });
}

/// For an item without keys, or without rows of this warpgroup: the rows that exist are padded text, whose output is 0.
template <class Traits>
__device__ void store_zeros(const RoutedAttentionParams& problem, const QueryBlock& item, int warpgroup,
                            const int* row_token) {
  using Element = typename Traits::Element;
  constexpr int kChunks = Traits::kHeadDim / 8;  // of 16 bytes, of a row
  const TensorView& view = problem.output;
  auto* rows = static_cast<Element*>(const_cast<void*>(view.data)) + item.sample * view.batch_stride +
               item.head * view.head_stride;
#pragma unroll 1
  for (int i = threadIdx.x % kThreadsPerWarpgroup; i < kRowsPerWarpgroup * kChunks; i += kThreadsPerWarpgroup) {
    const int token = row_token[warpgroup * kRowsPerWarpgroup + i / kChunks];
    if (token == kNoRow) continue;
    *reinterpret_cast<uint4*>(rows + (token < 0 ? ~token : token) * view.token_stride + i % kChunks * 8) = uint4{};
  }
}

}  // namespace vorta::sm90

#endif  // VORTA_TRT_KERNELS_SM90_EPILOGUE_CUH_
