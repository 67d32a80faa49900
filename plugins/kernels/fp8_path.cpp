// SPDX-License-Identifier: Apache-2.0
#include "fp8_path.h"

#include <cstring>

#include "cuda_error.h"
#include "last_error.h"
#include "vorta_trt/kernel_families.h"

namespace vorta {
namespace {

constexpr struct {
  const char* family;
  KernelPath path;
} kPaths[] = {{"sm90_fp8", KernelPath::kSm90Fp8}, {"sm89_fp8", KernelPath::kSm89Fp8}};

bool has_head_dim(const vorta_kernel_family& family, int head_dim) {
  for (size_t i = 0; i < family.head_dim_count; ++i) {
    if (family.head_dims[i] == head_dim) return true;
  }
  return false;
}

}  // namespace

vorta_status choose_fp8_path(const vorta_routed_attention_problem& problem, KernelPath* path) noexcept {
  const ForcedKernels forced = forced_kernels();
  if (forced == ForcedKernels::kSm80) {
    return fail(
        VORTA_UNSUPPORTED,
        "attention_precision fp8: the kernels %s, to which calls are held, have no 8-bit products; hold them to "
        "sm89_fp8 or to nothing, or use attention_precision same",
        forced_kernels_name());
  }
  size_t count = 0;
  const vorta_kernel_family* families = vorta_kernel_families(&count);
  int gpu = -1, oldest = INT32_MAX;
  bool has_any_head_dim = false, serves_gpu = false;
  for (size_t i = 0; i < count; ++i) {
    const vorta_kernel_family& family = families[i];
    if (family.attention_precision != VORTA_PRECISION_FP8) continue;
    if (family.oldest_gpu < oldest) oldest = family.oldest_gpu;
    if (!has_head_dim(family, problem.head_dim)) continue;
    has_any_head_dim = true;
    if (gpu < 0) {
      if (cudaError_t error = compute_capability(&gpu)) return report("kernel choice", error);
    }
    if (gpu < family.oldest_gpu || gpu > family.newest_gpu) continue;
    serves_gpu = true;
    if (family.architectures[0] == '\0') continue;
    if (forced == ForcedKernels::kSm89Fp8 && std::strcmp(family.name, forced_kernels_name()) != 0) continue;
    for (const auto& row : kPaths) {
      if (std::strcmp(family.name, row.family) != 0) continue;
      *path = row.path;
      return VORTA_OK;
    }
  }
  if (!has_any_head_dim) {
    return fail(VORTA_UNSUPPORTED,
                "attention_precision fp8 with head_dim %d: there are 8-bit kernels for head_dim 64 and 128; use "
                "attention_precision same",
                problem.head_dim);
  }
  if (!serves_gpu) {
    return fail(VORTA_UNSUPPORTED,
                "attention_precision fp8 on a GPU of compute capability %d.%d: 8-bit kernels need %d.%d or newer; use "
                "attention_precision same",
                gpu / 10, gpu % 10, oldest / 10, oldest % 10);
  }
  return fail(VORTA_UNSUPPORTED,
              "attention_precision fp8 on a GPU of compute capability %d.%d: the library was built for %s, without the "
              "8-bit kernels for this GPU, which no PTX of another one replaces; rebuild it with %d%s-real in "
              "VORTA_CUDA_ARCHITECTURES, or use attention_precision same",
              gpu / 10, gpu % 10, vorta_cuda_architectures(), gpu, gpu == 90 ? "a" : "");
}

}  // namespace vorta
