// SPDX-License-Identifier: Apache-2.0
//
// The persistent kernel of sm90/ with 8-bit products, and its launch.
#ifndef VORTA_TRT_KERNELS_SM90_FP8_ATTENTION_KERNEL_CUH_
#define VORTA_TRT_KERNELS_SM90_FP8_ATTENTION_KERNEL_CUH_

#include <algorithm>

#include "../fp8/value_mean.cuh"
#include "../kernel_launch.h"
#include "../sm90/epilogue.cuh"
#include "attention_launch.h"
#include "cutlass/arch/reg_reconfig.h"
#include "mainloop.cuh"
#include "producer.cuh"

namespace vorta::sm90_fp8 {

template <class Traits>
__device__ void consume(const AttentionParams& params, SharedStorage<Traits>& shared) {
  // Broadcast, so that the compiler knows it for uniform and keeps the matrix descriptors in uniform registers.
  const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / kThreadsPerWarpgroup - 1, 0);
  const RoutedAttentionParams& problem = params.pattern.problem;
  Consumer<Traits> consumer(shared, warpgroup);
  RingPosition<kItemSlots> slot;
  while (true) {
    wait(shared.item_full[slot.stage], slot.parity);
    const WorkItem& item = shared.item[slot.stage];
    if (item.kind == ItemKind::kEnd) return;
    if (item.key_blocks > 0 && item.rows > warpgroup * kRowsPerWarpgroup) {
      consumer.attend(slot, problem.scale_log2);
      fp8::add_value_mean(shared.vectors[slot.stage][warpgroup].value_mean, consumer.output);
    } else {
      consumer.skip(slot);
    }
    sm90::store_rows<Traits>(problem, item, warpgroup, consumer.output, shared.row_token[slot.stage]);
    __syncwarp();
    if (threadIdx.x % 32 == 0) shared.item_empty[slot.stage].arrive();
    slot = slot.next();
  }
}

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    attention_kernel(const __grid_constant__ AttentionParams params) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  auto& shared = *reinterpret_cast<SharedStorage<Traits>*>(shared_memory);
  if (threadIdx.x == 0) init_barriers(shared);
  __syncthreads();

  if (threadIdx.x < kThreadsPerWarpgroup) {
    cutlass::arch::warpgroup_reg_dealloc<kProducerRegisters>();
    const int warp = threadIdx.x / 32;
    if (warp == sm90::kKeyWarp || warp == sm90::kValueWarp) {
      produce_blocks(params, shared, warp == sm90::kValueWarp);
    } else {
      produce_queries(params, shared);
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<kConsumerRegisters>();
    consume(params, shared);
  }
#endif
}

template <vorta_dtype kDtype, int kHeadDim>
cudaError_t launch_attention(const RoutedAttentionParams& problem, cudaStream_t stream) {
  using Element = std::conditional_t<kDtype == VORTA_FLOAT16, cutlass::half_t, cutlass::bfloat16_t>;
  using Traits = KernelTraits<Element, kHeadDim>;
  constexpr int kSharedBytes = sizeof(SharedStorage<Traits>);
  static_assert(kSharedBytes <= sm90::kMaxSharedBytes, "must fit in the shared memory of an SM");

  AttentionParams params{};
  params.images = fp8::make_images(problem);
  sm90::Pattern& pattern = params.pattern;
  pattern.plan(problem, Traits::kRows, Traits::kCluster);

  const auto kernel = attention_kernel<Traits>;
  if (cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes)) {
    return error;
  }
  int processors = 0;
  if (cudaError_t error = count_processors(&processors)) return error;
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(processors, pattern.most_items())));
  return launch_kernel({grid, Traits::kThreads, kSharedBytes, stream}, kernel, params);
}

}  // namespace vorta::sm90_fp8

#endif  // VORTA_TRT_KERNELS_SM90_FP8_ATTENTION_KERNEL_CUH_
