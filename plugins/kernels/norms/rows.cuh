// SPDX-License-Identifier: Apache-2.0
//
// How rows lie in thread blocks. A block takes kRows rows and holds them in registers: thread t has vectors t,
// t + blockDim.x, ... of each. Several rows share what every row reads (modulations, weights, rotations) and the
// barriers of a reduction.
#ifndef VORTA_TRT_KERNELS_NORMS_ROWS_CUH_
#define VORTA_TRT_KERNELS_NORMS_ROWS_CUH_

#include "kernel_launch.h"
#include "vectors.cuh"

namespace vorta::norms {

inline constexpr int kWarpLanes = 32;
/// Vectors of a row that a thread holds. With 4 a row of 5,120 has 160 threads and a processor several blocks, whose
/// loads run while others reduce; 1 and 2 were slower on an H100 where much is computed (rotation, e4m3), 5 about as
/// fast.
inline constexpr int kVectors = 4;
inline constexpr int kMaxThreads = kMaxFeatures / kVector / kVectors;
inline constexpr unsigned kAllLanes = 0xffffffffu;

/// A row of a block.
struct Place {
  int32_t batch, token;
  bool exists;  // the last block of a grid may have fewer rows

  __device__ __forceinline__ int64_t offset(const RowTensor& tensor) const {
    return batch * tensor.batch_stride + token * tensor.token_stride;
  }
};

template <int kRows>
__device__ __forceinline__ void locate_rows(const RowShape& shape, Place (&places)[kRows]) {
  const int first = blockIdx.x * kRows;
  int batch = first / shape.tokens;
  int token = first - batch * shape.tokens;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    places[r] = {batch, token, r < shape.rows - first};
    if (++token == shape.tokens) token = 0, ++batch;
  }
}

template <int kRows>
__device__ __forceinline__ void load_rows(const RowShape& shape, const Place (&places)[kRows], const RowTensor& tensor,
                                          uint4 (&words)[kRows][kVectors]) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const uint4* row = tensor.data + places[r].offset(tensor);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int vector = v * blockDim.x + threadIdx.x;
      words[r][v] = places[r].exists && vector < shape.vectors ? row[vector] : uint4{};
    }
  }
}

struct Sum {
  static __device__ __forceinline__ float join(float a, float b) { return a + b; }
};

/// NaN is passed over.
struct Largest {
  static __device__ __forceinline__ float join(float a, float b) { return fmaxf(a, b); }
};

/// Joins each of `values` over aligned groups of `lanes` lanes, a power of two.
template <class Join, int kCount>
__device__ __forceinline__ void reduce_lanes(float (&values)[kCount], int lanes) {
#pragma unroll
  for (int step = 1; step < kWarpLanes; step *= 2) {
    if (step >= lanes) break;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      values[i] = Join::join(values[i], __shfl_xor_sync(kAllLanes, values[i], step));
    }
  }
}

/// Room for one reduction over a block. A second reduction takes another room, and so needs no barrier in between.
template <int kCount>
struct ReductionRoom {
  float of_warp[kMaxThreads / kWarpLanes][kCount];
};

/// Joins each of `values` over the block, in the same order in every thread.
template <class Join, int kCount>
__device__ __forceinline__ void reduce_block(float (&values)[kCount], ReductionRoom<kCount>& room) {
  reduce_lanes<Join>(values, kWarpLanes);
  if (blockDim.x == kWarpLanes) return;
  if (threadIdx.x % kWarpLanes == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) room.of_warp[threadIdx.x / kWarpLanes][i] = values[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = room.of_warp[0][i];
  for (int warp = 1; warp < blockDim.x / kWarpLanes; ++warp) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = Join::join(values[i], room.of_warp[warp][i]);
  }
}

template <int kRows, class Call>
cudaError_t launch_rows(void (*kernel)(Call), const Call& call, cudaStream_t stream) {
  const RowShape& shape = call.shape;
  const int threads = (shape.vectors + kVectors - 1) / kVectors;
  const unsigned blocks = (static_cast<unsigned>(shape.rows) + kRows - 1) / kRows;
  return launch_kernel({dim3(blocks), (threads + kWarpLanes - 1) / kWarpLanes * kWarpLanes, 0, stream}, kernel, call);
}

}  // namespace vorta::norms

#endif  // VORTA_TRT_KERNELS_NORMS_ROWS_CUH_
