// SPDX-License-Identifier: Apache-2.0
#include "kernel_path.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernel_families.h"
#include "vorta_trt/kernel_families.h"

namespace vorta {
namespace {

constexpr struct {
  const char* name;
  ForcedKernels value;
} kForceable[] = {{"", ForcedKernels::kNone}, {"sm80", ForcedKernels::kSm80}, {"sm89_fp8", ForcedKernels::kSm89Fp8}};

/// Value of the environment variable when the library was loaded; longer values are cut.
char environment[64] = "";

ForcedKernels parse(const char* family) {
  for (const auto& entry : kForceable) {
    if (std::strcmp(family == nullptr ? "" : family, entry.name) == 0) return entry.value;
  }
  return ForcedKernels::kUnknown;
}

/// getenv() races with setenv() of other threads, so no call asks again.
ForcedKernels read_environment() {
  const char* value = std::getenv(kKernelPathVariable);
  if (value != nullptr) std::snprintf(environment, sizeof(environment), "%s", value);
  return parse(value);
}

/// Whether TMA can address a tensor: its strides must be below 2^40 bytes (cuTensorMapEncodeTiled), and the stride of
/// the tokens must not be 0. `row_tokens`: tokens that a map steps over at once.
bool fits_tensor_map(const int64_t (&stride)[3], int row_tokens) {
  constexpr int64_t kMaxElements = (int64_t{1} << 40) / 2;
  const int64_t row_stride = stride[1] * row_tokens;
  return stride[1] != 0 && stride[0] < kMaxElements && stride[2] < kMaxElements && row_stride < kMaxElements;
}

/// Whether this library holds a family of the table.
bool is_compiled(const char* family) {
  size_t count = 0;
  const vorta_kernel_family* families = vorta_kernel_families(&count);
  return std::any_of(families, families + count, [family](const vorta_kernel_family& entry) {
    return std::strcmp(entry.name, family) == 0 && *entry.architectures != '\0';
  });
}

std::atomic<ForcedKernels> forced{read_environment()};

}  // namespace

ForcedKernels forced_kernels() noexcept { return forced.load(std::memory_order_relaxed); }

const char* forced_kernels_name() noexcept {
  const ForcedKernels value = forced_kernels();
  for (const auto& entry : kForceable) {
    if (value == entry.value) return entry.name;
  }
  return environment;
}

bool force_kernels(const char* family) noexcept {
  const ForcedKernels parsed = parse(family);
  if (parsed == ForcedKernels::kUnknown) return false;
  forced.store(parsed, std::memory_order_relaxed);
  return true;
}

cudaError_t compute_capability(int* result) {
  int device = 0, major = 0, minor = 0;
  if (cudaError_t error = cudaGetDevice(&device)) return error;
  if (cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device)) return error;
  if (cudaError_t error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device)) return error;
  *result = 10 * major + minor;
  return cudaSuccess;
}

namespace {

cudaError_t choose_kernel_path(int head_dim, bool fits_tensor_maps, KernelPath* path) {
  *path = KernelPath::kSm80;
  if (!sm90::HeadDims::has(head_dim) || !fits_tensor_maps) return cudaSuccess;
  if (!is_compiled("sm90")) return cudaSuccess;
  if (forced_kernels() != ForcedKernels::kNone) return cudaSuccess;

  int gpu = 0;
  if (cudaError_t error = compute_capability(&gpu)) return error;
  if (gpu == 90) *path = KernelPath::kSm90;
  return cudaSuccess;
}

}  // namespace

cudaError_t choose_kernel_path(const vorta_routed_attention_problem& problem,
                               const vorta_routed_attention_tensors& tensors, KernelPath* path) {
  const int width = problem.grid[2];  // from one row of the grid to the next
  const bool fits = fits_tensor_map(tensors.key_stride, width) && fits_tensor_map(tensors.value_stride, width);
  return choose_kernel_path(problem.head_dim, fits, path);
}

cudaError_t choose_kernel_path(const vorta_cross_attention_params& call, KernelPath* path) {
  const bool fits = fits_tensor_map(call.key_stride, 1) && fits_tensor_map(call.value_stride, 1);
  return choose_kernel_path(call.head_dim, fits, path);
}

}  // namespace vorta
