// SPDX-License-Identifier: Apache-2.0
//
// The output rows to global memory: each to its own token, a bucket centre's also to the tokens dropped from its
// bucket, and zeros to padded text.
#ifndef VORTA_TRT_KERNELS_ATTENTION_EPILOGUE_CUH_
#define VORTA_TRT_KERNELS_ATTENTION_EPILOGUE_CUH_

#include "block_iteration.cuh"
#include "row_copy.cuh"
#include "tensor_core.cuh"

namespace vorta::sm80 {

/// Rounds output (MMA, MMA_M, MMA_D) and lays it where Q was. Every warp must be done with Q.
template <class Traits, class Output>
__device__ void output_to_shared(const Output& output, SharedStorage<Traits>& shared) {
  using namespace cute;
  const auto rows = make_tensor(make_smem_ptr(shared.query), typename Traits::LayoutQ{});  // [kBlockM, D]
  const auto rounded = convert_fragment<typename Traits::Element>(output);
  const auto tiled_copy = make_tiled_copy_C(typename Traits::CopyOutput{}, typename Traits::TiledMma{});
  const auto thread_copy = tiled_copy.get_thread_slice(threadIdx.x);
  auto destination = thread_copy.partition_D(rows);
  copy(tiled_copy, thread_copy.retile_S(rounded), destination);
}

/// Writes this thread's chunks of one row, or zeros if `chunks` is null, to the row of `token`.
template <class Traits>
__device__ void store_row(const HeadView<typename Traits::Element>& output, int token, const uint4* chunks,
                          const RowCopyThread<Traits>& thread, int head_dim) {
  auto* row = output.data + token * output.token_stride;
#pragma unroll
  for (int atom = 0; atom < Traits::kHeadDim / Traits::kSwizzleColumns; ++atom) {
    const int column = thread.column + atom * Traits::kSwizzleColumns;
    if (column >= head_dim) continue;
    *reinterpret_cast<uint4*>(row + column) = chunks == nullptr ? uint4{0, 0, 0, 0} : chunks[atom];
  }
}

/// Stores the block's rows from shared memory, where only rows of padding may be missing.
template <class Traits>
__device__ void store_rows(const RoutedAttentionParams& params, SharedStorage<Traits>& shared) {
  constexpr int kAtoms = Traits::kHeadDim / Traits::kSwizzleColumns;
  const RowCopyThread<Traits> thread(threadIdx.x);
  const HeadView<typename Traits::Element> output(params.output);
  const typename Traits::LayoutQ layout;
  const auto* first_chunk = shared.query + thread.base(layout);
  const BlockIteration& iteration = shared.iteration;
  int* const tokens = shared.last_query_token();
  if (threadIdx.x < Traits::kBlockM) tokens[threadIdx.x] = iteration.query_token(params, threadIdx.x);
  __syncthreads();  // tokens and rows are in place
#pragma unroll 1
  for (int pass = 0; pass < Traits::kBlockM / Traits::kRowsPerPass; ++pass) {
    const int row = thread.row + pass * Traits::kRowsPerPass;
    const int token = tokens[row];
    if (token < 0) continue;
    if (iteration.is_padding(params, token)) {
      store_row<Traits>(output, token, nullptr, thread, params.head_dim);
      continue;
    }
    uint4 chunks[kAtoms];
#pragma unroll
    for (int atom = 0; atom < kAtoms; ++atom) {
      chunks[atom] = *reinterpret_cast<const uint4*>(first_chunk + thread.offset(layout, pass, atom));
    }
    store_row<Traits>(output, token, chunks, thread, params.head_dim);
    const auto copies = iteration.copies_of(params, row);
    for (int i = 0; i < copies.count; ++i) {
      const int copy = listed_token(params, copies.entries + i);
      store_row<Traits>(output, copy, chunks, thread, params.head_dim);
    }
  }
}

}  // namespace vorta::sm80

#endif  // VORTA_TRT_KERNELS_ATTENTION_EPILOGUE_CUH_
