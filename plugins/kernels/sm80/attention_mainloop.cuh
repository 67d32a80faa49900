// SPDX-License-Identifier: Apache-2.0
//
// Attention of one block of query rows over its keys, kBlockN at a time (FlashAttention-2, Dao 2023). K and V have one
// buffer each: V of this step is copied during Q K^T, K of the next step during the softmax and P V.
#ifndef VORTA_TRT_KERNELS_ATTENTION_MAINLOOP_CUH_
#define VORTA_TRT_KERNELS_ATTENTION_MAINLOOP_CUH_

#include "block_iteration.cuh"
#include "row_copy.cuh"
#include "softmax.cuh"
#include "tensor_core.cuh"

namespace vorta::sm80 {

/// Scores of keys past the last become -inf. `first_key` is the key of column 0.
template <class Traits, class Scores>
__device__ void mask_past(Scores& scores, int first_key, int key_count) {
  using namespace cute;
  const auto columns = make_identity_tensor(Shape<Int<Traits::kBlockM>, Int<Traits::kBlockN>>{});
  const auto thread_columns = typename Traits::TiledMma{}.get_thread_slice(threadIdx.x).partition_C(columns);
  CUTE_UNROLL
  for (int i = 0; i < size(scores); ++i) {
    if (first_key + get<1>(thread_columns(i)) >= key_count) scores(i) = -INFINITY;
  }
}

/// Writes the token ids of the block's query rows and of its first keys to shared memory.
template <class Traits>
__device__ void look_up_tokens(const BlockIteration& iteration, SharedStorage<Traits>& shared) {
  const int thread = threadIdx.x;
  if (thread < Traits::kBlockM) shared.query_token[thread] = iteration.query_token(thread);
  if (thread < Traits::kBlockN) shared.key_token[0][thread] = iteration.key_token(thread);
}

/// output (MMA, MMA_M, MMA_D) = softmax(Q K^T * scale) V, in fp32. look_up_tokens() and a barrier come first.
/// At least one key exists.
template <class Traits, class Output>
__device__ void attend(const RoutedAttentionParams& params, const BlockIteration& iteration,
                       SharedStorage<Traits>& shared, Output& output) {
  using namespace cute;
  using Element = typename Traits::Element;
  constexpr int kBlockM = Traits::kBlockM;
  constexpr int kBlockN = Traits::kBlockN;
  const int thread = threadIdx.x;
  const int head_dim = params.head_dim;
  const HeadView<const Element> query(params.query), key(params.key), value(params.value);

  const typename Traits::TiledMma mma;
  const auto q = make_tensor(make_smem_ptr(shared.query), typename Traits::LayoutQ{});              // [kBlockM, D]
  const auto k = make_tensor(make_smem_ptr(shared.key), typename Traits::LayoutKV{});               // [kBlockN, D]
  const auto v = make_tensor(make_smem_ptr(shared.value), typename Traits::LayoutVt{});             // [D, kBlockN]
  const auto v_plain = make_tensor(v.data(), get_nonswizzle_portion(typename Traits::LayoutVt{}));  // [D, kBlockN]
  auto scores = partition_fragment_C(mma, Shape<Int<kBlockM>, Int<kBlockN>>{});      // (MMA, MMA_M, MMA_N)
  auto score_rows = make_tensor(scores.data(), rows_and_columns(scores.layout()));   // [rows, columns]
  auto output_rows = make_tensor(output.data(), rows_and_columns(output.layout()));  // [rows, D columns]
  OnlineSoftmax<decltype(size<0>(score_rows))::value> softmax(params.scale_log2);
  clear(output);

  // Rows of padded text are computed from whatever Q holds there; store_rows() writes zeros in their place.
  gather_rows_async<Traits>(query, shared.query_token, head_dim, shared.query, typename Traits::LayoutQ{});
  gather_rows_async<Traits>(key, shared.key_token[0], head_dim, shared.key, typename Traits::LayoutKV{});
  cp_async_fence();

  const int key_count = iteration.key_count();
  const int steps = ceil_div(key_count, kBlockN);
  for (int step = 0; step < steps; ++step) {
    const int first_key = step * kBlockN;
    cp_async_wait<0>();
    __syncthreads();  // K has arrived (at first Q too), and every warp is done with the V and the token ids before
    gather_rows_async<Traits>(value, shared.key_token[step % 2], head_dim, shared.value, typename Traits::LayoutKV{});
    cp_async_fence();
    // Read here and stored after the product, so that the latency of a coreset list hides behind it.
    const int next_token = thread < kBlockN ? iteration.key_token(first_key + kBlockN + thread) : -1;

    clear(scores);
    multiply_shared(mma, typename Traits::CopyRows{}, scores, q, k);  // S = Q K^T

    if (thread < kBlockN) shared.key_token[(step + 1) % 2][thread] = next_token;
    if (first_key + kBlockN > key_count) mask_past<Traits>(scores, first_key, key_count);
    cp_async_wait<0>();
    __syncthreads();  // V has arrived, every warp is done with K, and the next token ids are visible
    if (step + 1 < steps) {
      gather_rows_async<Traits>(key, shared.key_token[(step + 1) % 2], head_dim, shared.key,
                                typename Traits::LayoutKV{});
      cp_async_fence();
    }

    softmax.update(score_rows, output_rows);  // P = exp2(S - max)
    const auto weights = convert_fragment<Element>(scores);
    const auto p = make_tensor(weights.data(), as_left_operand(weights.layout()));   // ((4, 2), MMA_M, MMA_N / 2)
    multiply_registers(mma, typename Traits::CopyColumns{}, output, p, v, v_plain);  // O += P V
  }
  softmax.normalize(output_rows);
}

}  // namespace vorta::sm80

#endif  // VORTA_TRT_KERNELS_ATTENTION_MAINLOOP_CUH_
