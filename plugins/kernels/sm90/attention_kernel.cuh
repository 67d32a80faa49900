// SPDX-License-Identifier: Apache-2.0
//
// A persistent kernel, one thread block an SM: the producer warpgroup takes work items and feeds shared memory, the
// consumer warpgroups compute 64 query rows of the item each.
#ifndef VORTA_TRT_KERNELS_SM90_ATTENTION_KERNEL_CUH_
#define VORTA_TRT_KERNELS_SM90_ATTENTION_KERNEL_CUH_

#include "cutlass/arch/reg_reconfig.h"
#include "mainloop.cuh"
#include "producer.cuh"

namespace vorta::sm90 {

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    attention_kernel(const __grid_constant__ AttentionParams params) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  auto& shared = *reinterpret_cast<SharedStorage<Traits>*>(shared_memory);
  if (threadIdx.x == 0) init_barriers(shared);
  const bool routed = params.problem.routes != nullptr;
  if (threadIdx.x == 32) prefetch_maps(params.key, routed);
  if (threadIdx.x == 64) prefetch_maps(params.value, routed);
  sync_cluster<Traits>();

  if (threadIdx.x < kThreadsPerWarpgroup) {
    cutlass::arch::warpgroup_reg_dealloc<Traits::Shape::kProducerRegisters>();
    const int warp = threadIdx.x / 32;
    if (warp == kKeyWarp || warp == kValueWarp) {
      produce_blocks(params, shared, warp == kValueWarp);
    } else {
      produce_queries(params, shared);
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<Traits::Shape::kConsumerRegisters>();
    // Broadcast, so that the compiler knows it for uniform and keeps the matrix descriptors in uniform registers.
    const int warpgroup = __shfl_sync(0xffffffffu, threadIdx.x / kThreadsPerWarpgroup - 1, 0);
    Consumer<Traits>(params, shared, warpgroup).run();
  }
  if (Traits::kCluster > 1) sync_cluster<Traits>();  // others may still write here
#endif
}

}  // namespace vorta::sm90

#endif  // VORTA_TRT_KERNELS_SM90_ATTENTION_KERNEL_CUH_
