// SPDX-License-Identifier: Apache-2.0
//
// Scales of an output in e4m3 that follow from those of the input: known before the product, so that its epilogue can
// round without having seen the row.
#include "kernel_launch.h"
#include "linear/product.h"

namespace vorta::linear {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads) output_scales_kernel(int64_t rows, const float* input_scale, float factor,
                                                                 float offset, float* output_scale, float* inverse) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= rows) return;
  const float scale = fmaf(factor, input_scale[row], offset);
  output_scale[row] = scale;
  inverse[row] = 1.0f / scale;
}

}  // namespace

cudaError_t launch_output_scales(int64_t rows, const float* input_scale, float factor, float offset,
                                 float* output_scale, float* inverse, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((rows + kThreads - 1) / kThreads);
  return launch_kernel({dim3(blocks), kThreads, 0, stream}, output_scales_kernel, rows, input_scale, factor, offset,
                       output_scale, inverse);
}

}  // namespace vorta::linear
