// SPDX-License-Identifier: Apache-2.0
//
// Grid (query blocks, N, B): a thread block computes one block of query rows of one head, whatever branch the head
// takes. The grid has room for the branch with the most blocks; the others' surplus blocks return at once.
#ifndef VORTA_TRT_KERNELS_ATTENTION_KERNEL_CUH_
#define VORTA_TRT_KERNELS_ATTENTION_KERNEL_CUH_

#include "attention_epilogue.cuh"
#include "attention_mainloop.cuh"

namespace vorta::sm80 {

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads)
    routed_attention_kernel(const __grid_constant__ RoutedAttentionParams params,
                            const __grid_constant__ SlidingPlan plan) {
  using namespace cute;
  extern __shared__ __align__(128) unsigned char shared_memory[];
  auto& shared = *reinterpret_cast<SharedStorage<Traits>*>(shared_memory);
  if (threadIdx.x == 0) shared.iteration.start(params, plan, Traits::kBlockM);
  __syncthreads();
  if (!shared.iteration.has_rows()) return;

  if (shared.iteration.has_queries()) {
    auto output = partition_fragment_C(typename Traits::TiledMma{},
                                       Shape<Int<Traits::kBlockM>, Int<Traits::kHeadDim>>{});  // (MMA, MMA_M, MMA_D)
    attend<Traits>(params, shared, output);
    // The loop's last barrier came after the last read of Q: its place is free.
    output_to_shared<Traits>(output, shared);
  }
  store_rows<Traits>(params, shared);
}

}  // namespace vorta::sm80

#endif  // VORTA_TRT_KERNELS_ATTENTION_KERNEL_CUH_
