// SPDX-License-Identifier: Apache-2.0
#ifndef VORTA_TRT_KERNELS_SM90_ATTENTION_LAUNCH_CUH_
#define VORTA_TRT_KERNELS_SM90_ATTENTION_LAUNCH_CUH_

#include <algorithm>

#include "../cuda_error.h"
#include "../kernel_launch.h"
#include "attention_kernel.cuh"
#include "attention_launch.h"
#include "tensor_maps.h"

namespace vorta::sm90 {

template <vorta_dtype kDtype, int kHeadDim, bool kRouted>
vorta_status launch_instance(const RoutedAttentionParams& problem, cudaStream_t stream) {
  using Element = std::conditional_t<kDtype == VORTA_FLOAT16, cutlass::half_t, cutlass::bfloat16_t>;
  using Traits = KernelTraits<Element, kHeadDim, kRouted>;
  constexpr int kSharedBytes = sizeof(SharedStorage<Traits>);
  constexpr const char* kStep = "attention";
  static_assert(kSharedBytes <= kMaxSharedBytes, "must fit in the shared memory of an SM");

  AttentionParams params{};
  params.plan(problem, Traits::kRows, Traits::kCluster);
  const bool routed = problem.routes != nullptr;
  if (routed) params.cut = make_window_cut(params.sliding, Traits::kKeys);
  if (vorta_status status = make_tensor_maps(params, kDtype, Traits::kKeys)) return status;

  const auto kernel = attention_kernel<Traits>;
  if (cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes)) {
    return report(kStep, error);
  }
  int processors = 0;
  if (cudaError_t error = count_processors(&processors)) return report(kStep, error);
  const int64_t clusters = std::min<int64_t>(processors / Traits::kCluster, params.most_items());
  const dim3 grid(static_cast<unsigned>(clusters * Traits::kCluster));
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim.x = Traits::kCluster;
  attributes[0].val.clusterDim.y = attributes[0].val.clusterDim.z = 1;
  // May start while the selection ends. Without a selection the kernel before is not ours, and has to end first.
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  const unsigned attribute_count = routed ? 2 : 1;
  const LaunchShape shape{grid, Traits::kThreads, kSharedBytes, stream, attributes, attribute_count};
  if (cudaError_t error = launch_kernel(shape, kernel, params)) return report(kStep, error);
  return VORTA_OK;
}

template <vorta_dtype kDtype, int kHeadDim>
vorta_status launch_attention(const RoutedAttentionParams& problem, cudaStream_t stream) {
  return launch_instance<kDtype, kHeadDim, true>(problem, stream);
}

template <vorta_dtype kDtype, int kHeadDim>
vorta_status launch_cross_attention(const RoutedAttentionParams& problem, cudaStream_t stream) {
  return launch_instance<kDtype, kHeadDim, false>(problem, stream);
}

}  // namespace vorta::sm90

#endif  // VORTA_TRT_KERNELS_SM90_ATTENTION_LAUNCH_CUH_
