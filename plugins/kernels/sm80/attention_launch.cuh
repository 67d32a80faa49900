// SPDX-License-Identifier: Apache-2.0
#ifndef VORTA_TRT_KERNELS_ATTENTION_LAUNCH_CUH_
#define VORTA_TRT_KERNELS_ATTENTION_LAUNCH_CUH_

#include <algorithm>

#include "attention_kernel.cuh"
#include "attention_launch.h"
#include "kernel_launch.h"

namespace vorta::sm80 {

template <vorta_dtype kDtype, int kInstanceHeadDim>
cudaError_t launch_attention(const RoutedAttentionParams& params, cudaStream_t stream) {
  using Element = std::conditional_t<kDtype == VORTA_FLOAT16, cutlass::half_t, cutlass::bfloat16_t>;
  using Traits = KernelTraits<Element, kInstanceHeadDim>;
  constexpr int kSharedBytes = sizeof(SharedStorage<Traits>);
  static_assert(kSharedBytes == shared_bytes(Traits::kShape), "the table's formula must count all of SharedStorage");
  static_assert(kSharedBytes <= kMaxSharedBytes, "must fit on SM86, SM89 and SM120");

  // Set on every call: the attribute belongs to the current device, and the call costs about a microsecond. It is also
  // what notices that the library has no code for this GPU.
  const auto kernel = routed_attention_kernel<Traits>;
  if (cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes)) {
    return error;
  }
  const SlidingPlan plan = make_sliding_plan(params.tiles, params.window, Traits::kBlockM, 1);
  const QueryBlocks blocks(params, plan, Traits::kBlockM);
  const dim3 grid(std::max({blocks.full, blocks.coreset, blocks.sliding}), params.heads, params.batch);
  return launch_kernel({grid, Traits::kThreads, kSharedBytes, stream}, kernel, params, plan);
}

}  // namespace vorta::sm80

#endif  // VORTA_TRT_KERNELS_ATTENTION_LAUNCH_CUH_
