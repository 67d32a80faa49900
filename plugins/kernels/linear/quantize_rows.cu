// SPDX-License-Identifier: Apache-2.0
//
// Rows to e4m3 with a scale each. A thread block holds a row in registers between finding its largest magnitude and
// rounding it, so the row is read once; longer rows than that are read twice.
#include <initializer_list>

#include "kernel_launch.h"
#include "linear/elements.cuh"
#include "linear/product.h"

namespace vorta::linear {
namespace {

constexpr int kThreads = 128;

/// The block's largest value, in every thread. NaN is passed over; its row becomes NaN by its own element.
__device__ __forceinline__ float largest_of_block(float value) {
  __shared__ float of_warp[kThreads / 32];
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, bit));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  value = of_warp[0];
#pragma unroll
  for (int warp = 1; warp < kThreads / 32; ++warp) value = fmaxf(value, of_warp[warp]);
  return value;
}

template <class Element>
__device__ __forceinline__ float largest_of(const uint4& vector, float largest) {
#pragma unroll
  for (uint32_t pair : {vector.x, vector.y, vector.z, vector.w}) {
    const float2 values = Pair<Element>::unpack(pair);
    largest = fmaxf(largest, fmaxf(fabsf(values.x), fabsf(values.y)));
  }
  return largest;
}

template <class Element>
__device__ __forceinline__ uint2 quantized(const uint4& vector, float scale) {
  const auto two = [scale](uint32_t pair) {
    const float2 values = Pair<Element>::unpack(pair);
    return pack_e4m3(values.x / scale, values.y / scale);
  };
  return {two(vector.x) | (two(vector.y) << 16), two(vector.z) | (two(vector.w) << 16)};
}

/// The vectors of a row; with kJoined the row continues in a second matrix.
template <class Element, bool kJoined>
struct Source {
  const uint4* first;
  const uint4* second;  // shifted, so that the index of a vector in the row holds here, too
  int first_vectors;

  __device__ __forceinline__ Source(const Rows& rows, int64_t row, int vectors) {
    first = reinterpret_cast<const uint4*>(static_cast<const Element*>(rows.input) + row * rows.input_stride);
    if constexpr (kJoined) {
      first_vectors = vectors - rows.second_features / kVector;
      second = reinterpret_cast<const uint4*>(static_cast<const Element*>(rows.second) + row * rows.second_stride) -
               first_vectors;
    }
  }
  __device__ __forceinline__ const uint4* operator+(int vector) const {
    if constexpr (kJoined) return (vector < first_vectors ? first : second) + vector;
    return first + vector;
  }
};

/// kHeld: vectors that each thread holds in registers; 0 reads the row twice.
template <class Element, bool kJoined, int kHeld>
__global__ void __launch_bounds__(kThreads)
    quantize_rows_kernel(const Rows rows, int vectors, void* quantized_rows, float* scale) {
  const int64_t row = blockIdx.x;
  const Source<Element, kJoined> source(rows, row, vectors);
  auto* target = static_cast<uint2*>(quantized_rows) + row * vectors;
  float largest = 0.0f, own_scale = 1.0f;
  if constexpr (kHeld > 0) {
    uint4 held[kHeld];
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int vector = i * kThreads + threadIdx.x;
      held[i] = vector < vectors ? __ldcs(source + vector) : uint4{};
    }
#pragma unroll
    for (int i = 0; i < kHeld; ++i) largest = largest_of<Element>(held[i], largest);
    own_scale = e4m3_scale(largest_of_block(largest));
#pragma unroll
    for (int i = 0; i < kHeld; ++i) {
      const int vector = i * kThreads + threadIdx.x;
      if (vector < vectors) target[vector] = quantized<Element>(held[i], own_scale);
    }
  } else {
    for (int vector = threadIdx.x; vector < vectors; vector += kThreads) {
      largest = largest_of<Element>(*(source + vector), largest);
    }
    own_scale = e4m3_scale(largest_of_block(largest));
    for (int vector = threadIdx.x; vector < vectors; vector += kThreads) {
      target[vector] = quantized<Element>(*(source + vector), own_scale);
    }
  }
  if (threadIdx.x == 0) scale[row] = own_scale;
}

template <class Element, bool kJoined, int... kHeld>
auto kernel_for(int vectors) {
  auto kernel = quantize_rows_kernel<Element, kJoined, 0>;
  (void)((vectors <= kHeld * kThreads && (kernel = quantize_rows_kernel<Element, kJoined, kHeld>, true)) || ...);
  return kernel;
}

template <class Element>
cudaError_t launch(int64_t rows, int features, const Rows& source, void* quantized_rows, float* scale,
                   cudaStream_t stream) {
  const int vectors = features / kVector;
  // Rows of 1,024 elements for each vector held: 3,072 and 5,120 are the models' widths, 12,288 to 15,360 the wide
  // ones.
  const auto kernel = source.second != nullptr ? kernel_for<Element, true, 8, 16>(vectors)
                                               : kernel_for<Element, false, 1, 2, 3, 5, 8, 12, 14, 16>(vectors);
  return launch_kernel({dim3(static_cast<unsigned>(rows)), kThreads, 0, stream}, kernel, source, vectors,
                       quantized_rows, scale);
}

}  // namespace

cudaError_t launch_quantize_rows(vorta_dtype dtype, int64_t rows, int features, const Rows& source,
                                 void* quantized_rows, float* scale, cudaStream_t stream) {
  const auto launch_for = dtype == VORTA_FLOAT16 ? launch<__half> : launch<__nv_bfloat16>;
  return launch_for(rows, features, source, quantized_rows, scale, stream);
}

}  // namespace vorta::linear
