// SPDX-License-Identifier: Apache-2.0
//
// The clocks of all multiprocessors at a point of a stream: each block writes its processor's cycle counter and the
// GPU's nanoseconds. Two stamps around an operator give its mean clock, whatever nvidia-smi's rate of samples is.
//
//   nvcc -O2 -std=c++17 -shared -Xcompiler -fPIC -cudart static -gencode arch=compute_90a,code=sm_90a \
//       -o clock_stamp.so clock_stamp.cu
#include <cuda_runtime.h>

#include <cstdint>

namespace {

__global__ void __launch_bounds__(32) stamp(int64_t* slot, int processors) {
  if (threadIdx.x != 0) return;
  uint32_t processor;
  uint64_t nanoseconds;
  asm volatile("mov.u32 %0, %%smid;" : "=r"(processor));
  if (processor >= static_cast<uint32_t>(processors)) return;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(nanoseconds));
  slot[2 * processor] = clock64();
  slot[2 * processor + 1] = static_cast<int64_t>(nanoseconds);
}

}  // namespace

/// slot: int64 [processors, 2] on the device: cycles and nanoseconds of each. A cudaError_t.
extern "C" int clock_stamp(int64_t* slot, int processors, cudaStream_t stream) {
  stamp<<<8 * processors, 32, 0, stream>>>(slot, processors);
  return static_cast<int>(cudaGetLastError());
}
