// SPDX-License-Identifier: Apache-2.0
//
// The order in which a persistent product visits its tiles: by bands. A band is some clusters of tiles high (or wide);
// within it clusters are taken column by column (row by row). The clusters that run at one time then form a rectangle,
// which reads fewer different bytes than a strip does. CUTLASS's own scheduler has such bands ("swizzle"), but rounds
// the grid of tiles up to whole bands along both axes and computes what lies outside: of 20 columns in bands of 8, 4.
#ifndef VORTA_TRT_KERNELS_SM90_LINEAR_BAND_SCHEDULER_CUH_
#define VORTA_TRT_KERNELS_SM90_LINEAR_BAND_SCHEDULER_CUH_

#include <cutlass/gemm/kernel/gemm_universal.hpp>
#include <cutlass/gemm/kernel/tile_scheduler.hpp>

namespace vorta::sm90_linear {

struct BandScheduler : cutlass::gemm::kernel::detail::PersistentTileSchedulerSm90 {
  using Base = cutlass::gemm::kernel::detail::PersistentTileSchedulerSm90;
  using Arguments = Base::Arguments;  // max_swizzle_size: clusters of a band; AlongN: bands of rows, AlongM: of columns
  using WorkTileInfo = Base::WorkTileInfo;

  struct Params : Base::Params {
    uint32_t minor_clusters;  // of the grid across the bands
    uint32_t major_clusters;  // along them
    uint32_t band;            // clusters across one band, the last one aside
    bool of_rows;
  };

  template <class ProblemShape, class TileShape, class ClusterShape>
  static Params to_underlying_arguments(ProblemShape problem, TileShape tile, ClusterShape cluster,
                                        cutlass::KernelHardwareInfo const& hardware, Arguments const& arguments,
                                        void* = nullptr, uint32_t = 1, uint32_t = 1) {
    const dim3 blocks = get_tiled_cta_shape_mnl(problem, tile, cluster);
    Params params{};
    params.initialize(blocks, cutlass::gemm::to_gemm_coord(cluster), hardware, 1, RasterOrderOptions::AlongN);
    params.of_rows = arguments.raster_order != RasterOrderOptions::AlongM;
    params.minor_clusters = params.of_rows ? params.problem_tiles_m_ : params.problem_tiles_n_;
    params.major_clusters = params.of_rows ? params.problem_tiles_n_ : params.problem_tiles_m_;
    params.band = static_cast<uint32_t>(arguments.max_swizzle_size > 0 ? arguments.max_swizzle_size : 1);
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
    if (cluster >= params_.minor_clusters * params_.major_clusters) return WorkTileInfo::invalid_work_tile();
    const uint32_t of_band = params_.band * params_.major_clusters;
    const uint32_t first = cluster / of_band * params_.band, rest = cluster % of_band;
    const uint32_t across = cute::min(params_.band, params_.minor_clusters - first);
    const uint32_t minor = first + rest % across, major = rest / across;
    const auto place = cute::block_id_in_cluster();
    const uint32_t m = (params_.of_rows ? minor : major) * params_.cluster_shape_m_ + place.x;
    const uint32_t n = (params_.of_rows ? major : minor) * params_.cluster_shape_n_ + place.y;
    return {static_cast<int32_t>(m), static_cast<int32_t>(n), 0, true};
  }

  Params params_;
  uint32_t index_ = 0, step_ = 0;
};

/// The tag by which kernels name it.
struct Bands {};

}  // namespace vorta::sm90_linear

namespace cutlass::gemm::kernel::detail {

template <class ArchTag, class TileShape, class ClusterShape, uint32_t kStages>
struct TileSchedulerSelector<vorta::sm90_linear::Bands, ArchTag, TileShape, ClusterShape, kStages> {
  using Scheduler = vorta::sm90_linear::BandScheduler;
};

}  // namespace cutlass::gemm::kernel::detail

#endif  // VORTA_TRT_KERNELS_SM90_LINEAR_BAND_SCHEDULER_CUH_
