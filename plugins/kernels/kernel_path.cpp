// SPDX-License-Identifier: Apache-2.0
#include "kernel_path.h"

#include <cstdlib>
#include <cstring>

#include "kernel_families.h"

namespace vorta {
namespace {

/// What the environment says, null if nothing.
const char* forced_kernel_path() {
  const char* value = std::getenv(kKernelPathVariable);
  return value == nullptr || *value == '\0' ? nullptr : value;
}

}  // namespace

bool is_kernel_path_variable_valid(const char** value) {
  *value = forced_kernel_path();
  return *value == nullptr || std::strcmp(*value, "sm80") == 0;
}

cudaError_t choose_kernel_path(const vorta_routed_attention_problem& problem,
                               const vorta_routed_attention_tensors& tensors, KernelPath* path) {
  constexpr int kToken = 1;
  *path = KernelPath::kSm80;
  if (!sm90::has_instance(problem.head_dim)) return cudaSuccess;
  // A tensor map has no axis along which the address stands still.
  if (tensors.key_stride[kToken] == 0 || tensors.value_stride[kToken] == 0) return cudaSuccess;
  if (std::strstr(vorta_cuda_architectures(), "90a") == nullptr) return cudaSuccess;
  if (forced_kernel_path() != nullptr) return cudaSuccess;

  int device = 0, major = 0, minor = 0;
  if (cudaError_t error = cudaGetDevice(&device)) return error;
  if (cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device)) return error;
  if (cudaError_t error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device)) return error;
  if (major == 9 && minor == 0) *path = KernelPath::kSm90;
  return cudaSuccess;
}

}  // namespace vorta
