// SPDX-License-Identifier: Apache-2.0
//
// Rows between global and shared memory, addressed by token id: 16 bytes a thread, rows in any order.
#ifndef VORTA_TRT_KERNELS_ROW_COPY_CUH_
#define VORTA_TRT_KERNELS_ROW_COPY_CUH_

#include "cutlass/arch/memory_sm80.h"
#include "kernel_traits.cuh"
#include "params.h"

namespace vorta::sm80 {

/// One sample's and head's rows: element (token, column) lies at data[token * token_stride + column].
template <class Element>
struct HeadView {
  Element* data;
  int64_t token_stride;

  __device__ explicit HeadView(const TensorView& view)
      : HeadView(const_cast<Element*>(static_cast<const Element*>(view.data)) + blockIdx.z * view.batch_stride +
                     blockIdx.y * view.head_stride,
                 view.token_stride) {}
  __device__ HeadView(Element* data_, int64_t token_stride_) : data(data_), token_stride(token_stride_) {}
};

/// Where a thread's 16-byte chunks lie in a block of rows: chunk (pass, atom) is row `row + pass * kRowsPerPass`,
/// column `column + atom * kSwizzleColumns`.
template <class Traits>
struct RowCopyThread {
  int row, column;

  __device__ explicit RowCopyThread(unsigned thread)
      : row(thread / Traits::kThreadsPerRow), column(thread % Traits::kThreadsPerRow * Traits::kChunk) {}

  /// Shared-memory offset of the thread's first chunk.
  template <class Layout>
  __device__ int base(const Layout& layout) const {
    return layout(row, column);
  }
  /// Distance of chunk (pass, atom) from it, a constant: whole swizzle atoms leave the swizzle alone.
  template <class Layout>
  __device__ static constexpr int offset(const Layout& layout, int pass, int atom) {
    return layout(pass * Traits::kRowsPerPass, atom * Traits::kSwizzleColumns);
  }
};

/// Starts copying the rows of `tokens` to shared memory; rows of what is no token of `count` and columns past head_dim
/// become 0, and nothing is read for them.
template <class Traits, class Layout>
__device__ void gather_rows_async(unsigned index, const HeadView<const typename Traits::Element>& source, int count,
                                  const int* tokens, int head_dim, typename Traits::Element* destination,
                                  const Layout& layout) {
  const RowCopyThread<Traits> thread(index);
  constexpr int kPasses = decltype(cute::size<0>(layout))::value / Traits::kRowsPerPass;
  typename Traits::Element* shared = destination + thread.base(layout);
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    const int token = tokens[thread.row + pass * Traits::kRowsPerPass];
    const bool is_token = static_cast<unsigned>(token) < static_cast<unsigned>(count);
    const auto* row = source.data + (is_token ? token : 0) * source.token_stride + thread.column;
#pragma unroll
    for (int atom = 0; atom < Traits::kHeadDim / Traits::kSwizzleColumns; ++atom) {
      const int column = atom * Traits::kSwizzleColumns;
      const bool exists = is_token && thread.column + column < head_dim;
      cutlass::arch::cp_async_zfill<16, cutlass::arch::CacheOperation::Global>(
          shared + thread.offset(layout, pass, atom), row + column, exists);
    }
  }
}

}  // namespace vorta::sm80

#endif  // VORTA_TRT_KERNELS_ROW_COPY_CUH_
