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

/// output (MMA, MMA_M, MMA_D) = softmax(Q K^T * scale) V, in fp32. At least one key exists.
template <class Traits, class Output>
__device__ void attend(const RoutedAttentionParams& params, SharedStorage<Traits>& shared, Output& output) {
  using namespace cute;
  using Element = typename Traits::Element;
  constexpr int kBlockM = Traits::kBlockM;
  constexpr int kBlockN = Traits::kBlockN;
  const int head_dim = params.head_dim;

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

  const BlockIteration& iteration = shared.iteration;
  const int thread = threadIdx.x;
  if (thread == 0) {
    shared.key_rows = HeadView<const Element>(params.key).data;
    shared.value_rows = HeadView<const Element>(params.value).data;
  }
  const auto key = [&] { return HeadView<const Element>(shared.key_rows, params.key.token_stride); };
  const auto value = [&] { return HeadView<const Element>(shared.value_rows, params.value.token_stride); };
  if (thread < kBlockM) shared.first_query_token()[thread] = iteration.query_token(params, thread);
  if (thread < kBlockN) iteration.columns().look_up(params, thread, shared.key_token[0] + thread);
  cp_async_fence();
  cp_async_wait<0>();
  __syncthreads();
  // Rows of padded text are computed from whatever Q holds there; store_rows() writes zeros in their place.
  gather_rows_async<Traits>(thread, HeadView<const Element>(params.query), params.tokens, shared.first_query_token(),
                            head_dim, shared.query, typename Traits::LayoutQ{});
  gather_rows_async<Traits>(thread, key(), params.key_tokens, shared.key_token[0], head_dim, shared.key,
                            typename Traits::LayoutKV{});
  cp_async_fence();

  const auto tokens_of = [&](int first) { return shared.key_token[first / kBlockN % 2]; };
  if constexpr (Traits::kParksSums) softmax.park_sums(shared.sums[thread]);
  bool has_more = true;
  for (int first_key = 0; has_more; first_key += kBlockN) {
    // Token ids of the next keys, while these keys are under way. Their place is free since the barrier before P V.
    const int next_key = first_key + kBlockN;
    const KeyColumns& columns = iteration.columns();
    const int key_count = iteration.fresh_key_count();
    const bool is_partial = next_key > key_count;
    has_more = next_key < key_count;
    if (thread < kBlockN) columns.look_up(params, next_key + thread, tokens_of(next_key) + thread);
    cp_async_fence();
    cp_async_wait<1>();
    __syncthreads();  // K has arrived (at first Q too), and every warp is done with the V before
    gather_rows_async<Traits>(iteration.fresh_thread(), value(), params.key_tokens, tokens_of(first_key), head_dim,
                              shared.value, typename Traits::LayoutKV{});
    cp_async_fence();

    clear(scores);
    multiply_shared(iteration.fresh_thread(), mma, typename Traits::CopyRows{}, scores, q, k);  // S = Q K^T

    if (is_partial) mask_past<Traits>(scores, first_key, iteration.fresh_key_count());
    cp_async_wait<0>();
    __syncthreads();  // V has arrived, every warp is done with K, and the next token ids are visible
    if (has_more) {
      gather_rows_async<Traits>(iteration.fresh_thread(), key(), params.key_tokens, tokens_of(next_key), head_dim,
                                shared.key, typename Traits::LayoutKV{});
      cp_async_fence();
    }

    softmax.raise(score_rows, output_rows);
    if constexpr (Traits::kParksSums) softmax.take_sums(shared.sums[thread]);
    const auto add_part = [&](auto part) {
      constexpr int kPart = decltype(part)::value, kColumns = decltype(size<1>(score_rows))::value / 2;
      softmax.template weigh<kPart * kColumns, kColumns>(score_rows);  // P = exp2(S - max)
      auto own = partition_fragment_C(mma, Shape<Int<kBlockM>, Int<kBlockN / 2>>{});
      const auto half = make_tensor(scores.data() + kPart * size(own), own.layout());
      const auto weights = convert_fragment<Element>(half);
      const auto p = make_tensor(weights.data(), as_left_operand(weights.layout()));  // ((4, 2), MMA_M, MMA_N / 4)
      multiply_registers<kPart * kBlockN / 32>(iteration.fresh_thread(), mma, typename Traits::CopyColumns{}, output, p,
                                               v, v_plain);  // O += P V
    };
    add_part(_0{});
    add_part(_1{});
    if constexpr (Traits::kParksSums) softmax.park_sums(shared.sums[thread]);
  }
  if constexpr (Traits::kParksSums) softmax.take_sums(shared.sums[thread]);
  softmax.normalize(output_rows);
}

}  // namespace vorta::sm80

#endif  // VORTA_TRT_KERNELS_ATTENTION_MAINLOOP_CUH_
