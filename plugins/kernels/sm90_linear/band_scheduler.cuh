// SPDX-License-Identifier: Apache-2.0
//
// CUTLASS's persistent scheduler of tiles with the order of band_order.h. CUTLASS's own has bands, too ("swizzle"), but
// rounds the grid of tiles up to whole bands along both axes and computes what lies outside: of 20 columns in bands of
// 8, 4 more.
#ifndef VORTA_TRT_KERNELS_SM90_LINEAR_BAND_SCHEDULER_CUH_
#define VORTA_TRT_KERNELS_SM90_LINEAR_BAND_SCHEDULER_CUH_

#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <cutlass/gemm/kernel/tile_scheduler.hpp>

#include "sm90_linear/band_order.h"

namespace vorta::sm90_linear {

template <BandsOf kBandsOf, uint32_t kBand>
struct BandScheduler : cutlass::gemm::kernel::detail::PersistentTileSchedulerSm90 {
  using Base = cutlass::gemm::kernel::detail::PersistentTileSchedulerSm90;
  using Arguments = Base::Arguments;
  using WorkTileInfo = Base::WorkTileInfo;

  struct Params : Base::Params {
    BandOrder order;
  };

  template <class ProblemShape, class TileShape, class ClusterShape>
  static Params to_underlying_arguments(ProblemShape problem, TileShape tile, ClusterShape cluster,
                                        cutlass::KernelHardwareInfo const& hardware, Arguments const&, void* = nullptr,
                                        uint32_t = 1, uint32_t = 1) {
    const dim3 blocks = get_tiled_cta_shape_mnl(problem, tile, cluster);
    Params params{};
    params.initialize(blocks, cutlass::gemm::to_gemm_coord(cluster), hardware, 1, RasterOrderOptions::AlongN);
    params.order = {params.problem_tiles_m_, params.problem_tiles_n_, kBand, kBandsOf};
    return params;
  }

  CUTLASS_HOST_DEVICE BandScheduler() {}
  CUTLASS_DEVICE explicit BandScheduler(Params const& params) : Base(params), params_(params) {
    index_ = blockIdx.x + blockIdx.y * gridDim.x;
    step_ = gridDim.x * gridDim.y;
  }

  CUTLASS_DEVICE WorkTileInfo get_current_work() const { return work_at(index_); }
  template <class ClusterShape>
  CUTLASS_DEVICE WorkTileInfo initial_work_tile_info(ClusterShape) {
    return get_current_work();
  }
  CUTLASS_DEVICE void advance_to_next_work(uint32_t count = 1) { index_ += step_ * count; }
  CUTLASS_DEVICE bool is_last_tile(WorkTileInfo&, uint32_t count = 1) const {
    return !work_at(index_ + step_ * count).is_valid();
  }
  CUTLASS_DEVICE auto fetch_next_work(WorkTileInfo) {
    advance_to_next_work();
    return cute::make_tuple(get_current_work(), true);
  }
  template <class Pipeline, class State>
  CUTLASS_DEVICE auto fetch_next_work(WorkTileInfo work, Pipeline&, State) {
    return fetch_next_work(work);
  }

 private:
  /// Counts thread blocks; those of a cluster are neighbours.
  CUTLASS_DEVICE WorkTileInfo work_at(uint32_t index) const {
    const uint32_t cluster = index / (params_.cluster_shape_m_ * params_.cluster_shape_n_);
    if (cluster >= params_.order.clusters()) return WorkTileInfo::invalid_work_tile();
    const ClusterPlace place = params_.order.place(cluster);
    const auto in_cluster = cute::block_id_in_cluster();
    const uint32_t m = place.row * params_.cluster_shape_m_ + in_cluster.x;
    const uint32_t n = place.column * params_.cluster_shape_n_ + in_cluster.y;
    return {static_cast<int32_t>(m), static_cast<int32_t>(n), 0, true};
  }

  Params params_;
  uint32_t index_ = 0, step_ = 0;
};

/// The tag by which kernels select the scheduler.
template <BandsOf kBandsOf, uint32_t kBand>
struct Bands {};

}  // namespace vorta::sm90_linear

namespace cutlass::gemm::kernel::detail {

template <vorta::sm90_linear::BandsOf kBandsOf, uint32_t kBand, class ArchTag, class TileShape, class ClusterShape,
          uint32_t kStages>
struct TileSchedulerSelector<vorta::sm90_linear::Bands<kBandsOf, kBand>, ArchTag, TileShape, ClusterShape, kStages> {
  using Scheduler = vorta::sm90_linear::BandScheduler<kBandsOf, kBand>;
};

}  // namespace cutlass::gemm::kernel::detail

#endif  // VORTA_TRT_KERNELS_SM90_LINEAR_BAND_SCHEDULER_CUH_
