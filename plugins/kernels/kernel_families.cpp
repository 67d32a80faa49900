// SPDX-License-Identifier: Apache-2.0
#include "vorta_trt/kernel_families.h"

#include <cuda_runtime_api.h>

#include "kernel_families.h"

#if !defined(VORTA_CUDA_ARCHITECTURES) || !defined(VORTA_SM90_ARCHITECTURES) || !defined(VORTA_SM89_ARCHITECTURES)
#error "define what each family of kernels is compiled for, as strings; CMakeLists.txt does"
#endif

namespace vorta {
namespace {

constexpr int32_t kNewest = 9999;  // PTX makes code for GPUs that are not there yet

template <class HeadDims>
constexpr vorta_kernel_family family(const char* name, vorta_attention_precision precision, int oldest_gpu,
                                     int newest_gpu, bool pads_head_dim, const char* architectures) {
  return {name, precision, oldest_gpu, newest_gpu, pads_head_dim, HeadDims::kValues, HeadDims::kCount, architectures};
}

// Fastest first.
constexpr vorta_kernel_family kFamilies[] = {
    family<sm90::HeadDims>("sm90", VORTA_PRECISION_SAME, 90, 90, false, VORTA_SM90_ARCHITECTURES),
    family<sm90_fp8::HeadDims>("sm90_fp8", VORTA_PRECISION_FP8, 90, 90, false, VORTA_SM90_ARCHITECTURES),
    // Later GPUs than Ada and Hopper, too; where they have no 8-bit mma.sync (10.x) it is emulated.
    family<sm89_fp8::HeadDims>("sm89_fp8", VORTA_PRECISION_FP8, 89, kNewest, false, VORTA_SM89_ARCHITECTURES),
    family<sm80::HeadDims>("sm80", VORTA_PRECISION_SAME, 80, kNewest, true, VORTA_CUDA_ARCHITECTURES),
};

}  // namespace
}  // namespace vorta

const vorta_kernel_family* vorta_kernel_families(size_t* count) {
  *count = sizeof(vorta::kFamilies) / sizeof(vorta::kFamilies[0]);
  return vorta::kFamilies;
}

int32_t vorta_cuda_version(void) { return CUDART_VERSION; }
