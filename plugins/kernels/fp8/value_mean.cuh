// SPDX-License-Identifier: Apache-2.0
#ifndef VORTA_TRT_KERNELS_FP8_VALUE_MEAN_CUH_
#define VORTA_TRT_KERNELS_FP8_VALUE_MEAN_CUH_

#include "elements.cuh"

namespace vorta::fp8 {

/// Adds the mean that was taken from the values before they were rounded. The output is an accumulator of rows of
/// 2 kOutputs columns: element i is column 8 (i / 4) + 2 (lane % 4) + i % 2.
template <int kOutputs>
__device__ void add_value_mean(const uint16_t* mean, float (&output)[kOutputs]) {
  const auto* pairs = reinterpret_cast<const uint32_t*>(mean);
#pragma unroll
  for (int group = 0; group < kOutputs / 4; ++group) {
    const float2 pair = unpack_bf16(pairs[4 * group + threadIdx.x % 4]);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      output[4 * group + 2 * half] += pair.x;
      output[4 * group + 2 * half + 1] += pair.y;
    }
  }
}

}  // namespace vorta::fp8

#endif  // VORTA_TRT_KERNELS_FP8_VALUE_MEAN_CUH_
