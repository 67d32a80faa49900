// SPDX-License-Identifier: Apache-2.0
#include <cstdint>
#include <initializer_list>

#include "last_error.h"
#include "tensor_checks.h"
#include "validate.h"

namespace vorta {
namespace {

constexpr int kWorkspaceAlignment = 256;

/// `tensors`: struct with pointers output, query, key and value; `inputs`: extents of query, key and value.
template <class Tensors>
vorta_status check_output_apart(const Tensors& tensors, const Extent& output, const Extent (&inputs)[3]) {
  bool apart = tensors.output != tensors.query && tensors.output != tensors.key && tensors.output != tensors.value;
  for (const Extent& input : inputs) apart = apart && !output.overlaps(input);
  if (apart) return VORTA_OK;
  return fail(VORTA_INVALID_ARGUMENT,
              "output %p: must not share memory with query, key or value; pass memory of its own", tensors.output);
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
  if (is_empty(problem)) return VORTA_OK;
  Extent query{}, key{}, value{}, output{};
  const auto check = [&](const char* name, const void* pointer, const int64_t (&stride)[3], Access access,
                         Extent* extent) {
    return check_tensor(name, "[B, S+T, N, D]", pointer, stride, size, problem.head_dim, access, extent);
  };
  if (vorta_status status = check("query", t.query, t.query_stride, Access::kRead, &query)) return status;
  if (vorta_status status = check("key", t.key, t.key_stride, Access::kRead, &key)) return status;
  if (vorta_status status = check("value", t.value, t.value_stride, Access::kRead, &value)) return status;
  if (vorta_status status = check("output", t.output, t.output_stride, Access::kWritten, &output)) return status;
  if (vorta_status status = check_output_apart(t, output, {query, key, value})) return status;
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
  const auto workspace = reinterpret_cast<uintptr_t>(t.workspace);
  const Extent scratch{workspace, workspace + workspace_bytes, true};
  for (const Extent& tensor : {query, key, value, output}) {
    if (!scratch.overlaps(tensor)) continue;
    return fail(VORTA_INVALID_ARGUMENT,
                "workspace %p: must not share memory with query, key, value or output; pass memory of its own",
                t.workspace);
  }
  return VORTA_OK;
}

vorta_status validate_tensors(const vorta_cross_attention_params& call) noexcept {
  if (is_empty(call)) return VORTA_OK;
  const int64_t queries[3] = {call.batch, call.query_tokens, call.heads};
  const int64_t keys[3] = {call.batch, call.key_tokens, call.heads};
  Extent query{}, key{}, value{}, output{};
  const auto check = [&](const char* name, const void* pointer, const int64_t (&stride)[3], Access access,
                         Extent* extent) {
    const bool of_keys = extent == &key || extent == &value;
    return check_tensor(name, of_keys ? "[B, Y, N, D]" : "[B, X, N, D]", pointer, stride, of_keys ? keys : queries,
                        call.head_dim, access, extent);
  };
  if (vorta_status status = check("query", call.query, call.query_stride, Access::kRead, &query)) return status;
  if (vorta_status status = check("key", call.key, call.key_stride, Access::kRead, &key)) return status;
  if (vorta_status status = check("value", call.value, call.value_stride, Access::kRead, &value)) return status;
  if (vorta_status status = check("output", call.output, call.output_stride, Access::kWritten, &output)) return status;
  return check_output_apart(call, output, {query, key, value});
}

}  // namespace vorta
