// SPDX-License-Identifier: Apache-2.0
//
// The one way in which kernels are launched. A launch says itself whether it failed: cudaGetLastError() would report,
// and clear, what an earlier call of somebody else in this thread left behind.
#ifndef VORTA_TRT_KERNELS_KERNEL_LAUNCH_H_
#define VORTA_TRT_KERNELS_KERNEL_LAUNCH_H_

#include <cuda_runtime.h>

namespace vorta {

/// A grid of thread blocks, and where it runs.
struct LaunchShape {
  dim3 grid;
  int threads;
  size_t shared_bytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attributes = nullptr;
  unsigned attribute_count = 0;
};

template <class... Parameters, class... Arguments>
cudaError_t launch_kernel(const LaunchShape& shape, void (*kernel)(Parameters...), const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = dim3(shape.threads);
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = shape.stream;
  config.attrs = shape.attributes;
  config.numAttrs = shape.attribute_count;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

/// Processors of the current device.
inline cudaError_t count_processors(int* processors) {
  int device = 0;
  if (cudaError_t error = cudaGetDevice(&device)) return error;
  return cudaDeviceGetAttribute(processors, cudaDevAttrMultiProcessorCount, device);
}

}  // namespace vorta

#endif  // VORTA_TRT_KERNELS_KERNEL_LAUNCH_H_
