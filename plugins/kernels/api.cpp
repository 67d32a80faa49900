// SPDX-License-Identifier: Apache-2.0
//
// The C API: validate, size the workspace, launch. Nothing here or below throws.
#include "kernel_path.h"
#include "last_error.h"
#include "launch.h"
#include "validate.h"
#include "vorta_trt/cross_attention.h"
#include "vorta_trt/routed_attention.h"
#include "workspace.h"

#if !defined(VORTA_VERSION) || !defined(VORTA_ABI_HASH) || !defined(VORTA_CUDA_ARCHITECTURES)
#error "define VORTA_VERSION, VORTA_ABI_HASH and VORTA_CUDA_ARCHITECTURES as strings; CMakeLists.txt does"
#endif

vorta_status vorta_routed_attention_validate(const vorta_routed_attention_problem* problem) {
  return vorta::validate_problem(problem);
}

vorta_status vorta_routed_attention_workspace_size(const vorta_routed_attention_problem* problem, size_t* bytes) {
  if (vorta_status status = vorta::validate_problem(problem)) return status;
  if (bytes == nullptr) {
    return vorta::fail(VORTA_INVALID_ARGUMENT, "bytes NULL: must point to a size_t that takes the answer; pass one");
  }
  *bytes = vorta::is_empty(*problem) ? 0 : vorta::workspace_layout(*problem).bytes;
  return VORTA_OK;
}

vorta_status vorta_routed_attention_enqueue(const vorta_routed_attention_problem* problem,
                                            const vorta_routed_attention_tensors* tensors, void* stream) {
  size_t workspace_bytes = 0;
  if (vorta_status status = vorta_routed_attention_workspace_size(problem, &workspace_bytes)) return status;
  if (vorta_status status = vorta::validate_tensors(*problem, tensors, workspace_bytes)) return status;
  return vorta::is_empty(*problem) ? VORTA_OK : vorta::launch(*problem, *tensors, stream);
}

vorta_status vorta_cross_attention_validate(const vorta_cross_attention_params* params) {
  return vorta::validate_call(params);
}

vorta_status vorta_cross_attention_enqueue(const vorta_cross_attention_params* params, void* stream) {
  if (vorta_status status = vorta::validate_call(params)) return status;
  if (vorta_status status = vorta::validate_tensors(*params)) return status;
  return vorta::is_empty(*params) ? VORTA_OK : vorta::launch(*params, stream);
}

vorta_status vorta_force_kernels(const char* family) {
  if (vorta::force_kernels(family)) return VORTA_OK;
  return vorta::fail(
      VORTA_INVALID_ARGUMENT,
      "family %s: must be sm80, the kernels that run on every GPU, or sm89_fp8, which also has 8-bit ones; pass "
      "NULL to let the GPU decide",
      family);
}

const char* vorta_forced_kernels(void) { return vorta::forced_kernels_name(); }

const char* vorta_last_error(void) { return vorta::last_error(); }

const char* vorta_version(void) { return VORTA_VERSION; }

const char* vorta_abi_hash(void) { return VORTA_ABI_HASH; }

const char* vorta_cuda_architectures(void) { return VORTA_CUDA_ARCHITECTURES; }
