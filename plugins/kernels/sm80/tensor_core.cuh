// SPDX-License-Identifier: Apache-2.0
//
// Matrix products of a thread block with mma.sync m16n8k16: operands from shared memory through ldmatrix, or the left
// one from registers; fp32 accumulators in registers.
#ifndef VORTA_TRT_KERNELS_TENSOR_CORE_CUH_
#define VORTA_TRT_KERNELS_TENSOR_CORE_CUH_

#include "cute/tensor.hpp"
#include "cutlass/numeric_conversion.h"

namespace vorta::sm80 {

/// An accumulator (4, MMA_M, MMA_N) seen as a matrix of this thread's (rows, columns): the 4 values of an m16n8 tile
/// are two rows of two columns.
template <class Layout>
CUTE_DEVICE auto rows_and_columns(const Layout& accumulator) {
  using namespace cute;
  const auto divided = logical_divide(accumulator, Shape<_2>{});  // ((2, 2), MMA_M, MMA_N)
  return make_layout(make_layout(get<0, 1>(divided), get<1>(divided)),
                     make_layout(get<0, 0>(divided), get<2>(divided)));
}

/// An accumulator (4, MMA_M, MMA_N) seen as the left operand ((4, 2), MMA_M, MMA_N / 2) of the next product: two m16n8
/// tiles are one m16k16 fragment.
template <class Layout>
CUTE_DEVICE auto as_left_operand(const Layout& accumulator) {
  using namespace cute;
  const auto divided = logical_divide(accumulator, Shape<X, X, _2>{});  // (4, MMA_M, (2, MMA_N / 2))
  return make_layout(make_layout(get<0>(divided), get<2, 0>(divided)), get<1>(divided), get<2, 1>(divided));
}

/// fp32 fragment to the 2-byte type, rounded to nearest even.
template <class Element, class Fragment>
CUTE_DEVICE auto convert_fragment(const Fragment& source) {
  using namespace cute;
  constexpr int kSize = decltype(size(source))::value;
  cutlass::NumericArrayConverter<Element, float, kSize> convert;
  const auto converted = convert(*reinterpret_cast<const cutlass::Array<float, kSize>*>(source.data()));
  auto result = make_tensor<Element>(source.layout());
  *reinterpret_cast<cutlass::Array<Element, kSize>*>(result.data()) = converted;
  return result;
}

/// accumulator += A B^T with A [M, K] and B [N, K] in shared memory, for `thread` of the block; the k-step after the
/// running one is in flight.
template <class TiledMma, class CopyAtom, class Accumulator, class SharedA, class SharedB>
CUTE_DEVICE void multiply_shared(unsigned thread, const TiledMma& mma, CopyAtom, Accumulator& accumulator,
                                 const SharedA& a, const SharedB& b) {
  using namespace cute;
  const auto thread_mma = mma.get_thread_slice(thread);
  auto fragment_a = thread_mma.partition_fragment_A(a);  // (MMA, MMA_M, MMA_K)
  auto fragment_b = thread_mma.partition_fragment_B(b);  // (MMA, MMA_N, MMA_K)
  const auto copy_a = make_tiled_copy_A(CopyAtom{}, mma);
  const auto copy_b = make_tiled_copy_B(CopyAtom{}, mma);
  const auto thread_a = copy_a.get_thread_slice(thread);
  const auto thread_b = copy_b.get_thread_slice(thread);
  const auto shared_a = thread_a.partition_S(a);
  const auto shared_b = thread_b.partition_S(b);
  auto copied_a = thread_a.retile_D(fragment_a);
  auto copied_b = thread_b.retile_D(fragment_b);

  copy(copy_a, shared_a(_, _, _0{}), copied_a(_, _, _0{}));
  copy(copy_b, shared_b(_, _, _0{}), copied_b(_, _, _0{}));
  CUTE_UNROLL
  for (int k = 0; k < size<2>(fragment_a); ++k) {
    if (k + 1 < size<2>(fragment_a)) {
      copy(copy_a, shared_a(_, _, k + 1), copied_a(_, _, k + 1));
      copy(copy_b, shared_b(_, _, k + 1), copied_b(_, _, k + 1));
    }
    gemm(mma, fragment_a(_, _, k), fragment_b(_, _, k), accumulator);
  }
}

/// accumulator += A B^T with A already in registers, its first k-step being B's kFirst-th, and B [N, K] in shared
/// memory; `b_plain` is B without its swizzle, for the fragment's shape.
template <int kFirst, class TiledMma, class CopyAtom, class Accumulator, class FragmentA, class SharedB, class PlainB>
CUTE_DEVICE void multiply_registers(unsigned thread, const TiledMma& mma, CopyAtom, Accumulator& accumulator,
                                    const FragmentA& fragment_a, const SharedB& b, const PlainB& b_plain) {
  using namespace cute;
  auto fragment_b = mma.get_thread_slice(thread).partition_fragment_B(b_plain);  // (MMA, MMA_N, MMA_K)
  const auto copy_b = make_tiled_copy_B(CopyAtom{}, mma);
  const auto thread_b = copy_b.get_thread_slice(thread);
  const auto shared_b = thread_b.partition_S(b);
  auto copied_b = thread_b.retile_D(fragment_b);

  copy(copy_b, shared_b(_, _, Int<kFirst>{}), copied_b(_, _, Int<kFirst>{}));
  CUTE_UNROLL
  for (int k = 0; k < size<2>(fragment_a); ++k) {
    if (k + 1 < size<2>(fragment_a)) copy(copy_b, shared_b(_, _, kFirst + k + 1), copied_b(_, _, kFirst + k + 1));
    gemm(mma, fragment_a(_, _, k), fragment_b(_, _, kFirst + k), accumulator);
  }
}

}  // namespace vorta::sm80

#endif  // VORTA_TRT_KERNELS_TENSOR_CORE_CUH_
