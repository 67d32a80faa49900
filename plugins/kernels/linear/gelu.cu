// SPDX-License-Identifier: Apache-2.0
//
// GELU in place, where the kernel of a product has no such epilogue.
#include <algorithm>

#include "kernel_launch.h"
#include "linear/elements.cuh"
#include "linear/product.h"

namespace vorta::linear {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 16;  // each block then takes several rounds

template <class Element>
__global__ void __launch_bounds__(kThreads)
    gelu_kernel(void* output, int64_t output_stride, int row_vectors, int64_t vectors) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < vectors; i += step) {
    const int64_t row = i / row_vectors, vector = i % row_vectors;
    auto* place = reinterpret_cast<uint4*>(static_cast<Element*>(output) + row * output_stride) + vector;
    const auto two = [](uint32_t pair) {
      const float2 values = Pair<Element>::unpack(pair);
      return Pair<Element>::pack(gelu(values.x), gelu(values.y));
    };
    const uint4 values = *place;
    *place = {two(values.x), two(values.y), two(values.z), two(values.w)};
  }
}

}  // namespace

cudaError_t launch_gelu(const Product& product, cudaStream_t stream) {
  const auto kernel = product.dtype == VORTA_FLOAT16 ? gelu_kernel<__half> : gelu_kernel<__nv_bfloat16>;
  const int row_vectors = product.out_features / kVector;
  const int64_t vectors = product.rows * row_vectors;
  const auto blocks = static_cast<unsigned>(std::min(kMaxBlocks, (vectors + kThreads - 1) / kThreads));
  return launch_kernel({dim3(blocks), kThreads, 0, stream}, kernel, product.output, product.output_stride, row_vectors,
                       vectors);
}

}  // namespace vorta::linear
