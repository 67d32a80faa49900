// SPDX-License-Identifier: Apache-2.0
//
// The product where cuBLASLt has none: blocks of 128 rows by 128 features, mma.sync m16n8k16 from shared memory, the
// next block of K in registers meanwhile. e4m3 becomes float16 on the way to shared memory.
#include "kernel_launch.h"
#include "linear/elements.cuh"
#include "linear/product.h"

namespace vorta::linear {
namespace {

constexpr int kThreads = 256;
constexpr int kBlock = 128;                // rows, and features, of a thread block
constexpr int kBlockK = 32;                // of K at a time
constexpr int kPitch = kBlockK + kVector;  // 80 bytes: eight rows of a fragment lie in different banks
constexpr int kWarpsAcross = 4;            // of the 8 warps, along the features
constexpr int kWarpRows = 64, kWarpFeatures = 32;
constexpr int kTilesM = kWarpRows / 16, kTilesN = kWarpFeatures / 8;
constexpr int kVectorsOfRow = kBlockK / kVector;
constexpr int kVectorsOfThread = kBlock * kVectorsOfRow / kThreads;
static_assert(kBlock / kWarpRows * kWarpsAcross * 32 == kThreads && kWarpsAcross * kWarpFeatures == kBlock);

/// Arguments of the kernel; see Product.
struct Arguments {
  const void *input, *weight;
  const float *input_scale, *weight_scale;
  const void* bias;
  void* output;
  int64_t rows, input_stride, weight_stride, output_stride;
  int in_features, out_features;
  bool gelu, adds;
};

using Tile = uint16_t[kBlock][kPitch];

/// Vectors of a block [kBlock, kBlockK] of a matrix [rows, K], zeros outside of it.
template <bool kFp8>
struct Vectors {
  uint4 of_thread[kVectorsOfThread];

  __device__ __forceinline__ void load(const void* matrix, int64_t stride, int64_t first_row, int64_t rows, int first_k,
                                       int k_end) {
#pragma unroll
    for (int i = 0; i < kVectorsOfThread; ++i) {
      const int vector = i * kThreads + threadIdx.x;
      const int64_t row = first_row + vector / kVectorsOfRow;
      const int k = first_k + vector % kVectorsOfRow * kVector;
      of_thread[i] = uint4{};
      if (row >= rows || k >= k_end) continue;
      if constexpr (kFp8) {
        const uint2 bytes = *reinterpret_cast<const uint2*>(static_cast<const uint8_t*>(matrix) + row * stride + k);
        of_thread[i] = {unpack_e4m3(bytes.x & 0xffffu), unpack_e4m3(bytes.x >> 16), unpack_e4m3(bytes.y & 0xffffu),
                        unpack_e4m3(bytes.y >> 16)};
      } else {
        of_thread[i] = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(matrix) + row * stride + k);
      }
    }
  }

  __device__ __forceinline__ void store(Tile& tile) const {
#pragma unroll
    for (int i = 0; i < kVectorsOfThread; ++i) {
      const int vector = i * kThreads + threadIdx.x;
      *reinterpret_cast<uint4*>(&tile[vector / kVectorsOfRow][vector % kVectorsOfRow * kVector]) = of_thread[i];
    }
  }
};

/// Four 8x8 fragments from the rows that the lanes name.
__device__ __forceinline__ void load_fragments(uint32_t (&fragment)[4], const uint16_t* row) {
  const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address));
}

/// sums [16, 8] += a [16, 16] b [8, 16]^T
template <class Element>
__device__ __forceinline__ void multiply(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (std::is_same_v<Element, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

template <class Element>
__device__ __forceinline__ void multiply_tiles(float (&sums)[kTilesM][kTilesN][4], const Tile& a, const Tile& b,
                                               int first_row, int first_feature) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int k = 0; k < kBlockK; k += 16) {
    uint32_t fragment_a[kTilesM][4], fragment_b[kTilesN / 2][4];
#pragma unroll
    for (int m = 0; m < kTilesM; ++m) {
      load_fragments(fragment_a[m], &a[first_row + m * 16 + lane % 16][k + lane / 16 * 8]);
    }
#pragma unroll
    for (int n = 0; n < kTilesN / 2; ++n) {  // two tiles of 8 features: (k, k + 8) of the first, then of the second
      load_fragments(fragment_b[n], &b[first_feature + n * 16 + lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 8]);
    }
#pragma unroll
    for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
      for (int n = 0; n < kTilesN; ++n) {
        multiply<Element>(sums[m][n], fragment_a[m], fragment_b[n / 2][n % 2 * 2], fragment_b[n / 2][n % 2 * 2 + 1]);
      }
    }
  }
}

/// Element: type of bias and output, and of the operands unless they are e4m3.
template <class Element, bool kFp8>
__global__ void __launch_bounds__(kThreads) own_product_kernel(const Arguments arguments) {
  using Operand = std::conditional_t<kFp8, __half, Element>;
  __shared__ alignas(16) Tile tile_input[2];
  __shared__ alignas(16) Tile tile_weight[2];
  const int blocks_across = (arguments.out_features + kBlock - 1) / kBlock;
  const int64_t block_row = static_cast<int64_t>(blockIdx.x / blocks_across) * kBlock;
  const int block_feature = static_cast<int>(blockIdx.x % blocks_across) * kBlock;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_row = warp / kWarpsAcross * kWarpRows, warp_feature = warp % kWarpsAcross * kWarpFeatures;

  float sums[kTilesM][kTilesN][4] = {};
  Vectors<kFp8> input, weight;
  const auto load = [&](int k) {
    input.load(arguments.input, arguments.input_stride, block_row, arguments.rows, k, arguments.in_features);
    weight.load(arguments.weight, arguments.weight_stride, block_feature, arguments.out_features, k,
                arguments.in_features);
  };
  load(0);
  int stage = 0;
  for (int k = 0; k < arguments.in_features; k += kBlockK, stage ^= 1) {
    input.store(tile_input[stage]);
    weight.store(tile_weight[stage]);
    __syncthreads();  // also: nobody reads the other stage any more
    if (k + kBlockK < arguments.in_features) load(k + kBlockK);
    multiply_tiles<Operand>(sums, tile_input[stage], tile_weight[stage], warp_row, warp_feature);
  }

  // A thread has two neighbouring features of rows lane / 4 and lane / 4 + 8 of each tile.
#pragma unroll
  for (int m = 0; m < kTilesM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = block_row + warp_row + m * 16 + half * 8 + lane / 4;
      if (row >= arguments.rows) continue;
      const float row_scale = kFp8 ? arguments.input_scale[row] : 1.0f;
      auto* output_row = static_cast<Element*>(arguments.output) + row * arguments.output_stride;
#pragma unroll
      for (int n = 0; n < kTilesN; ++n) {
        const int feature = block_feature + warp_feature + n * 8 + lane % 4 * 2;
        if (feature >= arguments.out_features) continue;
        float2 value{sums[m][n][half * 2], sums[m][n][half * 2 + 1]};
        if constexpr (kFp8) {
          value.x *= row_scale * arguments.weight_scale[feature];
          value.y *= row_scale * arguments.weight_scale[feature + 1];
        }
        if (arguments.adds) {
          const float2 before = Pair<Element>::unpack(*reinterpret_cast<const uint32_t*>(output_row + feature));
          value = {value.x + before.x, value.y + before.y};
        }
        if (arguments.bias != nullptr) {
          const auto* pair = static_cast<const Element*>(arguments.bias) + feature;
          const float2 bias = Pair<Element>::unpack(*reinterpret_cast<const uint32_t*>(pair));
          value = {value.x + bias.x, value.y + bias.y};
        }
        if (arguments.gelu) value = {gelu(value.x), gelu(value.y)};
        *reinterpret_cast<uint32_t*>(output_row + feature) = Pair<Element>::pack(value.x, value.y);
      }
    }
  }
}

}  // namespace

cudaError_t launch_own_product(const Product& p, cudaStream_t stream) {
  const Arguments arguments{p.input,       p.weight,       p.input_scale,  p.weight_scale,  p.bias,
                            p.output,      p.rows,         p.input_stride, p.weight_stride, p.output_stride,
                            p.in_features, p.out_features, p.gelu,         p.adds};
  auto kernel = p.dtype == VORTA_FLOAT16 ? own_product_kernel<__half, false> : own_product_kernel<__nv_bfloat16, false>;
  if (p.fp8) {
    kernel = p.dtype == VORTA_FLOAT16 ? own_product_kernel<__half, true> : own_product_kernel<__nv_bfloat16, true>;
  }
  const int64_t blocks = ((p.rows + kBlock - 1) / kBlock) * ((p.out_features + kBlock - 1) / kBlock);
  return launch_kernel({dim3(static_cast<unsigned>(blocks)), kThreads, 0, stream}, kernel, arguments);
}

}  // namespace vorta::linear
