// SPDX-License-Identifier: Apache-2.0
//
// The kernel of sm80/ with 8-bit products, and its launch. Grid (query blocks, N, B), as there.
#ifndef VORTA_TRT_KERNELS_SM89_FP8_ATTENTION_KERNEL_CUH_
#define VORTA_TRT_KERNELS_SM89_FP8_ATTENTION_KERNEL_CUH_

#include <algorithm>

#include "../fp8/value_mean.cuh"
#include "../kernel_launch.h"
#include "attention_launch.h"
#include "epilogue.cuh"
#include "mainloop.cuh"
#include "query_rows.cuh"

namespace vorta::sm89_fp8 {

template <class Traits>
__global__ void __launch_bounds__(Traits::kThreads, 1)
    attention_kernel(const __grid_constant__ RoutedAttentionParams problem, const __grid_constant__ SlidingPlan plan,
                     const __grid_constant__ Images images) {
#ifdef VORTA_HAS_E4M3_MMA
  extern __shared__ __align__(128) unsigned char shared_memory[];
  auto& shared = *reinterpret_cast<SharedStorage<Traits>*>(shared_memory);
  const int thread = threadIdx.x;
  if (thread == 0) shared.iteration.start(problem, plan, Traits::kRows);
  __syncthreads();
  const sm80::BlockIteration& iteration = shared.iteration;
  if (!iteration.has_rows()) return;

  if (thread < Traits::kRows) {
    const int token = iteration.query_token(problem, thread);
    shared.row_token[thread] = token < 0 ? kNoRow : (iteration.is_padding(problem, token) ? ~token : token);
  }
  float output[Traits::kOutputs];
  if (iteration.has_queries()) {
    const int64_t head = int64_t{blockIdx.z} * problem.heads + blockIdx.y;
    const int text_chunks = fp8::chunks_of(iteration.text_length()),
              video_chunks = images.video_chunks(iteration.route());
    int chunks = text_chunks;
    if (iteration.has_window()) {
      chunks += images.window_chunks(problem, iteration.group().window_origin);
    } else {
      chunks += video_chunks;
    }
    if (thread == 0) {
      shared.first_chunk = head * images.chunks;
      shared.chunks = iteration.has_window()
                          ? fp8::ChunkList(problem, images, iteration.group().window_origin, text_chunks)
                          : fp8::ChunkList(problem, video_chunks, text_chunks);
    }
    look_up_chunks(0, shared);
    __syncthreads();
    copy_stage(images, 0, shared);
    look_up_chunks(1, shared);
    float row_factor[2];
    load_queries(problem, images.statistics_of(head, Traits::kHeadDim, fp8::kQueryFactor), shared, row_factor);
    row_factor[0] *= problem.scale_log2;
    row_factor[1] *= problem.scale_log2;
    attend(images, chunks, row_factor, shared, output);
    fp8::add_value_mean(images.statistics_of(head, Traits::kHeadDim, fp8::kValueMean), output);
  } else {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Traits::kOutputs; ++i) output[i] = 0.0f;
  }
  store_rows<Traits>(problem, output, shared);
#endif
}

template <vorta_dtype kDtype, int kHeadDim>
cudaError_t launch_attention(const RoutedAttentionParams& problem, cudaStream_t stream) {
  using Element = std::conditional_t<kDtype == VORTA_FLOAT16, cutlass::half_t, cutlass::bfloat16_t>;
  using Traits = KernelTraits<Element, kHeadDim>;
  constexpr int kSharedBytes = sizeof(SharedStorage<Traits>);
  static_assert(kSharedBytes <= kMaxSharedBytes, "must fit on SM89 and SM120");

  const auto kernel = attention_kernel<Traits>;
  if (cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes)) {
    return error;
  }
  const SlidingPlan plan = make_sliding_plan(problem.tiles, problem.window, Traits::kRows, 1);
  const sm80::QueryBlocks blocks(problem, plan, Traits::kRows);
  const dim3 grid(std::max({blocks.full, blocks.coreset, blocks.sliding}), problem.heads, problem.batch);
  return launch_kernel({grid, Traits::kThreads, kSharedBytes, stream}, kernel, problem, plan,
                       fp8::make_images(problem));
}

}  // namespace vorta::sm89_fp8

#endif  // VORTA_TRT_KERNELS_SM89_FP8_ATTENTION_KERNEL_CUH_
