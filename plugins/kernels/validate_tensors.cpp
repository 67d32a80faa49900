// SPDX-License-Identifier: Apache-2.0
#include <cstdint>

#include "last_error.h"
#include "validate.h"

namespace vorta {
namespace {

constexpr int kVectorBytes = 16;  // of every global load and store
constexpr int kElementBytes = 2;  // float16 and bfloat16
constexpr int kWorkspaceAlignment = 256;
constexpr const char* kStrideNames[3] = {"batch", "token", "head"};

bool is_aligned(const void* pointer, int bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

/// `min_stride` is 0 for inputs, which may be broadcast, and D for the output, whose rows must not overlap.
vorta_status check_tensor(const char* name, const void* pointer, const int64_t (&stride)[3], const int64_t (&size)[3],
                          int64_t min_stride) {
  if (pointer == nullptr) {
    return fail(VORTA_INVALID_ARGUMENT, "%s NULL: must be a device pointer to [B, S+T, N, D]; pass one", name);
  }
  if (!is_aligned(pointer, kVectorBytes)) {
    return fail(VORTA_INVALID_ARGUMENT, "%s %p: must be aligned to %d bytes; copy the tensor to a fresh allocation",
                name, pointer, kVectorBytes);
  }
  for (int axis = 0; axis < 3; ++axis) {
    if (size[axis] == 1) continue;  // never multiplied by anything but 0
    const bool aligned = stride[axis] % (kVectorBytes / kElementBytes) == 0;
    if (aligned && stride[axis] >= min_stride) continue;
    return fail(VORTA_INVALID_ARGUMENT,
                "%s stride %lld of the %s axis: must be a multiple of 8 elements (16 bytes), at least %lld; make the "
                "tensor contiguous",
                name, static_cast<long long>(stride[axis]), kStrideNames[axis], static_cast<long long>(min_stride));
  }
  return VORTA_OK;
}

}  // namespace

vorta_status validate_tensors(const vorta_routed_attention_problem& problem,
                              const vorta_routed_attention_tensors* tensors, size_t workspace_bytes) noexcept {
  if (tensors == nullptr) {
    return fail(VORTA_INVALID_ARGUMENT, "tensors NULL: must point to a vorta_routed_attention_tensors; pass one");
  }
  const vorta_routed_attention_tensors& t = *tensors;
  if (t.struct_size != sizeof(t)) {
    return fail(VORTA_INVALID_ARGUMENT,
                "tensors.struct_size %zu: must be %zu in this library (API version %d); set it to sizeof(*tensors) and "
                "compile against the same header",
                t.struct_size, sizeof(t), VORTA_API_VERSION);
  }
  const int64_t video_tokens = 1LL * problem.grid[0] * problem.grid[1] * problem.grid[2];
  const int64_t size[3] = {problem.batch, video_tokens + problem.text_tokens, problem.heads};
  if (vorta_status status = check_tensor("query", t.query, t.query_stride, size, 0)) return status;
  if (vorta_status status = check_tensor("key", t.key, t.key_stride, size, 0)) return status;
  if (vorta_status status = check_tensor("value", t.value, t.value_stride, size, 0)) return status;
  if (vorta_status status = check_tensor("output", t.output, t.output_stride, size, problem.head_dim)) return status;
  if (t.output == t.query || t.output == t.key || t.output == t.value) {
    return fail(VORTA_INVALID_ARGUMENT, "output %p: must not be query, key or value; pass memory of its own", t.output);
  }
  if (t.routes == nullptr || !is_aligned(t.routes, sizeof(int32_t))) {
    return fail(VORTA_INVALID_ARGUMENT, "routes %p: must be an aligned device pointer to int32 [B, N]; pass one",
                static_cast<const void*>(t.routes));
  }
  if (problem.text_tokens > 0 && (t.text_length == nullptr || !is_aligned(t.text_length, sizeof(int32_t)))) {
    return fail(VORTA_INVALID_ARGUMENT,
                "text_length %p: text_tokens %d need the valid text tokens of every sample; pass an aligned device "
                "pointer to int32 [B]",
                static_cast<const void*>(t.text_length), problem.text_tokens);
  }
  if (problem.text_tokens == 0 && t.text_length != nullptr) {
    return fail(VORTA_INVALID_ARGUMENT, "text_length %p: must be NULL because text_tokens is 0; pass NULL",
                static_cast<const void*>(t.text_length));
  }
  if (t.workspace == nullptr || !is_aligned(t.workspace, kWorkspaceAlignment)) {
    return fail(VORTA_INVALID_ARGUMENT, "workspace %p: must be a device pointer aligned to %d bytes; pass one",
                t.workspace, kWorkspaceAlignment);
  }
  if (t.workspace_bytes < workspace_bytes) {
    return fail(VORTA_INVALID_ARGUMENT,
                "workspace_bytes %zu: this problem needs %zu; allocate what vorta_routed_attention_workspace_size says",
                t.workspace_bytes, workspace_bytes);
  }
  return VORTA_OK;
}

}  // namespace vorta
