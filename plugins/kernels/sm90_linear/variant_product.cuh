// SPDX-License-Identifier: Apache-2.0
//
// What fp8_product.cuh does, with the tile, the order of tiles, the operands and the epilogue as parameters.
#ifndef VORTA_TRT_KERNELS_SM90_LINEAR_VARIANT_PRODUCT_CUH_
#define VORTA_TRT_KERNELS_SM90_LINEAR_VARIANT_PRODUCT_CUH_

#include <cutlass/gemm/device/gemm_universal_adapter.h>

#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/epilogue/fusion/sm90_visitor_compute_tma_warpspecialized.hpp>
#include <cutlass/epilogue/fusion/sm90_visitor_load_tma_warpspecialized.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>

#include "band_scheduler.cuh"
#include "kernel_launch.h"
#include "linear/elements.cuh"
#include "variants.h"

namespace vorta::sm90_linear::variants {

using namespace cute;
using cutlass::epilogue::TmaWarpSpecialized;
using cutlass::epilogue::TmaWarpSpecializedCooperative;
using cutlass::gemm::KernelTmaWarpSpecializedCooperative;
using cutlass::gemm::KernelTmaWarpSpecializedCooperativeFP8FastAccum;
using cutlass::gemm::KernelTmaWarpSpecializedPingpong;
using cutlass::gemm::KernelTmaWarpSpecializedPingpongFP8FastAccum;

template <class Rows, class Features, class ClusterRows, class ClusterFeatures, bool kTurns>
struct TileOf {
  template <bool kFp8>
  using Shape = cute::Shape<Rows, Features, std::conditional_t<kFp8, _128, _64>>;  // 128 bytes of K
  using Cluster = cute::Shape<ClusterRows, ClusterFeatures, _1>;
  template <bool kFp8>
  using Mainloop = std::conditional_t<
      kTurns, std::conditional_t<kFp8, KernelTmaWarpSpecializedPingpongFP8FastAccum, KernelTmaWarpSpecializedPingpong>,
      std::conditional_t<kFp8, KernelTmaWarpSpecializedCooperativeFP8FastAccum, KernelTmaWarpSpecializedCooperative>>;
  using Epilogue = std::conditional_t<kTurns, TmaWarpSpecialized, TmaWarpSpecializedCooperative>;
};

using Tiles =
    std::tuple<TileOf<_128, _256, _2, _1, false>, TileOf<_256, _128, _2, _1, false>, TileOf<_256, _128, _1, _2, false>,
               TileOf<_128, _128, _2, _1, true>, TileOf<_64, _256, _2, _1, true>>;
static_assert(std::tuple_size_v<Tiles> == kTiles);

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

template <bool kFp8, class Element, int kTile, int kEpilogue>
struct Kernel {
  using Choice = std::tuple_element_t<kTile, Tiles>;
  using TileShape = typename Choice::template Shape<kFp8>;
  using Cluster = typename Choice::Cluster;
  static constexpr bool kGelu = kEpilogue == kBiasGelu || kEpilogue == kBiasGeluQuantized;
  static constexpr bool kGated = kEpilogue == kBiasGated, kQuantized = kEpilogue == kBiasGeluQuantized;

  using Float8 = cutlass::float_e4m3_t;
  using Operand = std::conditional_t<kFp8, Float8, Element>;
  using Output = std::conditional_t<kQuantized, Float8, Element>;
  using Source = std::conditional_t<kGated, Element, void>;
  using RowMajor = cutlass::layout::RowMajor;
  static constexpr int kOperandAlignment = kFp8 ? 16 : 8, kOutputAlignment = kQuantized ? 16 : 8;  // 16 bytes

  static constexpr auto kRound = cutlass::FloatRoundStyle::round_to_nearest;
  template <template <class> class Function, class Result = float>
  using Compute = cutlass::epilogue::fusion::Sm90Compute<Function, Result, float, kRound>;
  template <class... Nodes>
  using Tree = cutlass::epilogue::fusion::Sm90EVT<Nodes...>;
  template <class Value>
  using OfFeature = cutlass::epilogue::fusion::Sm90RowBroadcast<0, TileShape, Value, float, Stride<_0, _1, _0>>;
  using OfRow = cutlass::epilogue::fusion::Sm90ColBroadcast<0, TileShape, float, float, Stride<_1, _0, _0>>;

  template <class Result>
  using AffineTo = std::conditional_t<
      kFp8,
      Tree<Compute<cutlass::homogeneous_multiply_add, Result>, OfRow,
           Tree<Compute<cutlass::multiplies>, OfFeature<float>, cutlass::epilogue::fusion::Sm90AccFetch>,
           OfFeature<Element>>,
      Tree<Compute<cutlass::plus, Result>, OfFeature<Element>, cutlass::epilogue::fusion::Sm90AccFetch>>;
  using Affine = AffineTo<std::conditional_t<kEpilogue == kBias, Element, float>>;
  using Activated = Tree<Compute<Gelu, std::conditional_t<kQuantized, float, Element>>, Affine>;
  using Gated = Tree<Compute<cutlass::homogeneous_multiply_add, Element>, OfFeature<float>, Affine,
                     cutlass::epilogue::fusion::Sm90SrcFetch<Element>>;
  using Quantized = Tree<Compute<cutlass::multiplies, Float8>, OfRow,
                         Tree<Compute<cutlass::multiplies>, OfFeature<float>, Activated>>;
  using Epilogue =
      std::conditional_t<kGated, Gated,
                         std::conditional_t<kQuantized, Quantized, std::conditional_t<kGelu, Activated, Affine>>>;

  using CollectiveEpilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, TileShape, Cluster,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, Source, RowMajor, 8, Output, RowMajor,
      kOutputAlignment, typename Choice::Epilogue, Epilogue>::CollectiveOp;
  using CollectiveMainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Operand, RowMajor, kOperandAlignment, Operand,
      cutlass::layout::ColumnMajor, kOperandAlignment, float, TileShape, Cluster,
      cutlass::gemm::collective::StageCountAutoCarveout<static_cast<int>(
          sizeof(typename CollectiveEpilogue::SharedStorage))>,
      typename Choice::template Mainloop<kFp8>>::CollectiveOp;
  static_assert(CollectiveMainloop::DispatchPolicy::Stages >= 3);
  using Type =
      cutlass::gemm::kernel::GemmUniversal<Shape<int, int, int, int>, CollectiveMainloop, CollectiveEpilogue, Bands>;
};

template <bool kFp8, class Element, int kTile, int kEpilogue>
cudaError_t launch(const linear::Product& p, const BandShape& bands, cudaStream_t stream) {
  using Kernel = Kernel<kFp8, Element, kTile, kEpilogue>;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<typename Kernel::Type>;
  typename Kernel::Affine::Arguments affine{};
  if constexpr (kFp8) {
    affine = {{p.input_scale}, {{p.weight_scale}, {}, {}}, {static_cast<const Element*>(p.bias)}, {}};
  } else {
    affine = {{static_cast<const Element*>(p.bias)}, {}, {}};
  }
  typename Gemm::Arguments arguments{};
  arguments.mode = cutlass::gemm::GemmUniversalMode::kGemm;
  arguments.problem_shape = {static_cast<int>(p.rows), p.out_features, p.in_features, 1};
  arguments.mainloop = {static_cast<const typename Kernel::Operand*>(p.input),
                        {p.input_stride, {}, {}},
                        static_cast<const typename Kernel::Operand*>(p.weight),
                        {p.weight_stride, {}, {}}};
  if constexpr (Kernel::kGated) {
    arguments.epilogue.thread = {{p.gate, 1.0f}, affine, {}, {}};
    arguments.epilogue.ptr_C = static_cast<const Element*>(p.residual);
    arguments.epilogue.dC = {p.residual_stride, {}, {}};
  } else if constexpr (Kernel::kQuantized) {
    arguments.epilogue.thread = {{p.inverse_output_scale}, {{p.feature_factor, 1.0f}, {affine, {}}, {}}, {}};
  } else if constexpr (Kernel::kGelu) {
    arguments.epilogue.thread = {affine, {}};
  } else {
    arguments.epilogue.thread = affine;
  }
  arguments.epilogue.ptr_D = static_cast<typename Kernel::Output*>(p.output);
  arguments.epilogue.dD = {p.output_stride, {}, {}};
  using Order = cutlass::gemm::kernel::detail::RasterOrderOptions;
  arguments.scheduler.max_swizzle_size = bands.clusters;
  arguments.scheduler.raster_order = bands.of_columns ? Order::AlongM : Order::AlongN;
  if (cudaError_t error = cudaGetDevice(&arguments.hw_info.device_id)) return error;
  if (cudaError_t error = count_processors(&arguments.hw_info.sm_count)) return error;

  Gemm gemm;
  if (gemm.initialize(arguments, nullptr, stream) != cutlass::Status::kSuccess) return cudaErrorInvalidValue;
  return gemm.run(stream) == cutlass::Status::kSuccess ? cudaSuccess : cudaErrorLaunchFailure;
}

}  // namespace vorta::sm90_linear::variants

namespace vorta::sm90_linear {

template <bool kFp8, vorta_dtype kDtype, int kTile, int kEpilogue>
cudaError_t launch_variant(const linear::Product& product, const BandShape& bands, cudaStream_t stream) {
  using Element = std::conditional_t<kDtype == VORTA_FLOAT16, cutlass::half_t, cutlass::bfloat16_t>;
  return variants::launch<kFp8, Element, kTile, kEpilogue>(product, bands, stream);
}

}  // namespace vorta::sm90_linear

#endif  // VORTA_TRT_KERNELS_SM90_LINEAR_VARIANT_PRODUCT_CUH_
