// SPDX-License-Identifier: Apache-2.0
//
// The output rows from the accumulators to global memory: each to its own token, a bucket centre's also to the tokens
// dropped from its bucket, and zeros to padded text.
#ifndef VORTA_TRT_KERNELS_SM89_FP8_EPILOGUE_CUH_
#define VORTA_TRT_KERNELS_SM89_FP8_EPILOGUE_CUH_

#include "../sm90/softmax.cuh"
#include "shared_storage.cuh"

namespace vorta::sm89_fp8 {

/// Two neighbouring lanes exchange words, so that each has 8 bytes of a row and four lanes a whole sector of 32.
template <class Traits>
__device__ void store_rows(const RoutedAttentionParams& problem, const float (&output)[Traits::kOutputs],
                           const SharedStorage<Traits>& shared) {
  using Element = typename Traits::Element;
  constexpr int kSectors = Traits::kHeadDim / 16;  // of a row
  const int lane = threadIdx.x % 32;
  const bool odd = lane % 2;
  const TensorView& view = problem.output;
  auto* column = static_cast<Element*>(const_cast<void*>(view.data)) + blockIdx.z * view.batch_stride +
                 blockIdx.y * view.head_stride + lane % 2 * 8 + lane % 4 / 2 * 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = threadIdx.x / 32 * Traits::kRowsPerWarp + half * 8 + lane / 4;
    const int token = shared.row_token[row];
    uint2 words[kSectors];
#pragma unroll
    for (int sector = 0; sector < kSectors; ++sector) {
      const float* pairs = output + 8 * sector + 2 * half;  // of columns 16 sector + {0, 8} + 2 (lane % 4) + {0, 1}
      const uint32_t low = sm90::pack<Element>(pairs[0], pairs[1]), high = sm90::pack<Element>(pairs[4], pairs[5]);
      const uint32_t received = __shfl_xor_sync(0xffffffffu, odd ? low : high, 1);
      words[sector] = odd ? uint2{received, high} : uint2{low, received};
      if (token < 0) words[sector] = uint2{0, 0};
    }
    if (token == kNoRow) continue;
    const auto copies = shared.iteration.copies_of(problem, row);
    int to = token < 0 ? ~token : token;
    for (int i = 0;; ++i) {
      auto* target = column + to * view.token_stride;
#pragma unroll
      for (int sector = 0; sector < kSectors; ++sector) *reinterpret_cast<uint2*>(target + sector * 16) = words[sector];
      if (i == copies.count) break;
      to = listed_token(problem, copies.entries + i);
    }
  }
}

}  // namespace vorta::sm89_fp8

#endif  // VORTA_TRT_KERNELS_SM89_FP8_EPILOGUE_CUH_
