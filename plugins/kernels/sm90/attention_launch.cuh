// SPDX-License-Identifier: Apache-2.0
#ifndef VORTA_TRT_KERNELS_SM90_ATTENTION_LAUNCH_CUH_
#define VORTA_TRT_KERNELS_SM90_ATTENTION_LAUNCH_CUH_

#include <algorithm>

#include "attention_kernel.cuh"
#include "attention_launch.h"
#include "tensor_maps.h"

namespace vorta::sm90 {

template <vorta_dtype kDtype, int kHeadDim>
cudaError_t launch_attention(const RoutedAttentionParams& problem, cudaStream_t stream) {
  using Element = std::conditional_t<kDtype == VORTA_FLOAT16, cutlass::half_t, cutlass::bfloat16_t>;
  using Traits = KernelTraits<Element, kHeadDim>;
  constexpr int kSharedBytes = sizeof(SharedStorage<Traits>);
  static_assert(kSharedBytes <= kMaxSharedBytes, "must fit in the shared memory of an SM");

  AttentionParams params{};
  params.problem = problem;
  params.sliding = make_sliding_plan(problem.tiles, problem.window, Traits::kRows, Traits::kKeys);
  const auto blocks = [](int rows) { return (rows + Traits::kRows - 1) / Traits::kRows; };
  params.blocks_full = blocks(problem.video_tokens + problem.text_tokens);
  params.blocks_coreset = blocks(problem.kept_tokens + problem.text_tokens);
  params.blocks_text = blocks(problem.text_tokens);
  params.blocks_sliding = params.sliding.first_block[params.sliding.classes];
  if (cudaError_t error = make_tensor_maps(params, kDtype, Traits::kKeys)) return error;

  const auto kernel = attention_kernel<Traits>;
  if (cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes)) {
    return error;
  }
  int device = 0, processors = 0;
  if (cudaError_t error = cudaGetDevice(&device)) return error;
  if (cudaError_t error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device)) return error;
  const int64_t most =
      std::max({params.blocks_full, params.blocks_coreset, params.blocks_text + params.blocks_sliding});

  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(std::min<int64_t>(processors, most * problem.batch * problem.heads)));
  config.blockDim = dim3(Traits::kThreads);
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  cudaLaunchAttribute overlap{};  // its prologue may run while the coreset selection ends
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &overlap;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, params);
}

}  // namespace vorta::sm90

#endif  // VORTA_TRT_KERNELS_SM90_ATTENTION_LAUNCH_CUH_
