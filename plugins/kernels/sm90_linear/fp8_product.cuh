// SPDX-License-Identifier: Apache-2.0
//
// output [R, O] = activation(input_scale[r] * (weight_scale[o] * sum) + bias[o]): the tree of visitors below says it in
// CUTLASS's words. Sums stay in the tensor cores' accumulators for all of K ("fast accumulation").
#ifndef VORTA_TRT_KERNELS_SM90_LINEAR_FP8_PRODUCT_CUH_
#define VORTA_TRT_KERNELS_SM90_LINEAR_FP8_PRODUCT_CUH_

#include <cutlass/gemm/device/gemm_universal_adapter.h>

#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/epilogue/fusion/sm90_visitor_compute_tma_warpspecialized.hpp>
#include <cutlass/epilogue/fusion/sm90_visitor_load_tma_warpspecialized.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include "kernel_launch.h"
#include "linear/elements.cuh"
#include "sm90_linear/band_scheduler.cuh"
#include "sm90_linear/fp8_product.h"

namespace vorta::sm90_linear {

using namespace cute;

/// Two thread blocks along the rows read each byte of the weights once.
using ClusterShape = Shape<_2, _1, _1>;

/// How the output is cut into tiles, who computes one, and in which order they come. A tile has rows, features and
/// bytes of K. Measured on an H200, which draws its 700 W in either (docs/kernels-lab-book.md, "Products at the power
/// limit").
template <bool kGelu>
struct Tiling;

/// A product that only scales its sums stores a tile quickly. So both groups of warps multiply one tile of twice the
/// features, which takes 2/3 of the reads. Its band is 2,048 columns wide.
template <>
struct Tiling<false> {
  using Tile = Shape<_128, _256, _128>;
  using Mainloop = cutlass::gemm::KernelTmaWarpSpecializedCooperativeFP8FastAccum;
  using Epilogue = cutlass::epilogue::TmaWarpSpecializedCooperative;
  using Order = Bands<BandsOf::kColumns, 8>;
};

/// The GELU takes longer: the groups work on a tile each and take turns ("ping-pong"), so that one multiplies while the
/// other computes exponentials. Its band is 2,048 rows high.
template <>
struct Tiling<true> {
  using Tile = Shape<_128, _128, _128>;
  using Mainloop = cutlass::gemm::KernelTmaWarpSpecializedPingpongFP8FastAccum;
  using Epilogue = cutlass::epilogue::TmaWarpSpecialized;
  using Order = Bands<BandsOf::kRows, 8>;
};

/// The GELU on what a visitor gives: a float or an array of them.
template <class Value>
struct Gelu {
  CUTLASS_DEVICE float operator()(float value) const { return linear::gelu(value); }
};
template <int kCount>
struct Gelu<cutlass::Array<float, kCount>> {
  CUTLASS_DEVICE cutlass::Array<float, kCount> operator()(cutlass::Array<float, kCount> values) const {
    CUTLASS_PRAGMA_UNROLL
    for (int i = 0; i < kCount; ++i) values[i] = linear::gelu(values[i]);
    return values;
  }
};

template <class Element, bool kGelu>
struct Kernel {
  using Tiles = Tiling<kGelu>;
  using TileShape = typename Tiles::Tile;

  static constexpr auto kRound = cutlass::FloatRoundStyle::round_to_nearest;
  template <template <class> class Function, class Output>
  using Compute = cutlass::epilogue::fusion::Sm90Compute<Function, Output, float, kRound>;
  template <class... Nodes>
  using Tree = cutlass::epilogue::fusion::Sm90EVT<Nodes...>;

  using Sum = cutlass::epilogue::fusion::Sm90AccFetch;
  using InputScale = cutlass::epilogue::fusion::Sm90ColBroadcast<0, TileShape, float, float, Stride<_1, _0, _0>>;
  using WeightScale = cutlass::epilogue::fusion::Sm90RowBroadcast<0, TileShape, float, float, Stride<_0, _1, _0>>;
  using Bias = cutlass::epilogue::fusion::Sm90RowBroadcast<0, TileShape, Element, float, Stride<_0, _1, _0>>;
  using Scaled = Tree<Compute<cutlass::multiplies, float>, WeightScale, Sum>;
  using Affine = Tree<Compute<cutlass::homogeneous_multiply_add, std::conditional_t<kGelu, float, Element>>, InputScale,
                      Scaled, Bias>;
  using Activated = Tree<Compute<Gelu, Element>, Affine>;
  using Epilogue = std::conditional_t<kGelu, Activated, Affine>;

  using Float8 = cutlass::float_e4m3_t;
  using RowMajor = cutlass::layout::RowMajor;
  static constexpr int kAlignment8 = 16, kAlignment16 = 8;  // elements of 16 bytes

  using CollectiveEpilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, TileShape, ClusterShape,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, void, RowMajor, kAlignment16, Element, RowMajor,
      kAlignment16, typename Tiles::Epilogue, Epilogue>::CollectiveOp;
  using CollectiveMainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Float8, RowMajor, kAlignment8, Float8,
      cutlass::layout::ColumnMajor, kAlignment8, float, TileShape, ClusterShape,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
          sizeof(typename CollectiveEpilogue::SharedStorage))>,
      typename Tiles::Mainloop>::CollectiveOp;
  using Type = cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, CollectiveMainloop, CollectiveEpilogue,
                                                    typename Tiles::Order>;
  static_assert(CollectiveMainloop::DispatchPolicy::Stages >= 3);
  static_assert(Type::SharedStorageSize <= 227 * 1024);  // what a thread block may have
};

template <class Element, bool kGelu>
cudaError_t launch(const linear::Product& p, cudaStream_t stream) {
  using Kernel = Kernel<Element, kGelu>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<typename Kernel::Type>;
  using Float8 = typename Kernel::Float8;
  typename Kernel::Affine::Arguments affine{
      {p.input_scale}, {{p.weight_scale}, {}, {}}, {static_cast<const Element*>(p.bias)}, {}};
  typename Gemm::Arguments arguments{};
  arguments.mode = cutlass::gemm::GemmUniversalMode::kGemm;
  arguments.problem_shape = {static_cast<int>(p.rows), p.out_features, p.in_features, 1};
  arguments.mainloop = {static_cast<const Float8*>(p.input),
                        {p.input_stride, {}, {}},
                        static_cast<const Float8*>(p.weight),
                        {static_cast<int64_t>(p.in_features), {}, {}}};
  if constexpr (kGelu) {
    arguments.epilogue.thread = {affine, {}};
  } else {
    arguments.epilogue.thread = affine;
  }
  arguments.epilogue.ptr_D = static_cast<Element*>(p.output);
  arguments.epilogue.dD = {p.output_stride, {}, {}};
  if (cudaError_t error = cudaGetDevice(&arguments.hw_info.device_id)) return error;
  if (cudaError_t error = count_processors(&arguments.hw_info.sm_count)) return error;

  Gemm gemm;
  if (gemm.initialize(arguments, nullptr, stream) != cutlass::Status::kSuccess) return cudaErrorInvalidValue;
  return gemm.run(stream) == cutlass::Status::kSuccess ? cudaSuccess : cudaErrorLaunchFailure;
}

template <vorta_dtype kDtype, bool kGelu>
cudaError_t launch_fp8_product(const linear::Product& product, cudaStream_t stream) {
  using Element = std::conditional_t<kDtype == VORTA_FLOAT16, cutlass::half_t, cutlass::bfloat16_t>;
  return launch<Element, kGelu>(product, stream);
}

}  // namespace vorta::sm90_linear

#endif  // VORTA_TRT_KERNELS_SM90_LINEAR_FP8_PRODUCT_CUH_
