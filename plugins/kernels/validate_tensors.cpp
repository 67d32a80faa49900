// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdint>

#include "last_error.h"
#include "validate.h"

namespace vorta {
namespace {

constexpr int kVectorBytes = 16;  // of every global load and store
constexpr int kElementBytes = 2;  // float16 and bfloat16
constexpr int kWorkspaceAlignment = 256;
constexpr int64_t kMaxElements = int64_t{1} << 56;  // beyond every address, and far from overflow
constexpr const char* kStrideNames[3] = {"batch", "token", "head"};

bool is_aligned(const void* pointer, int bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

/// The bytes from a tensor's first element to its last.
struct Extent {
  uintptr_t begin, end;
  bool dense;  // every byte belongs to an element

  bool overlaps(const Extent& other) const { return dense && other.dense && begin < other.end && other.begin < end; }
};

enum class Access { kRead, kWritten };

/// Strides may stand in any order of size, and those of what is read may be 0 (broadcast). Beyond that no two rows of
/// D elements share memory: each stride has to pass all that the smaller ones reach.
vorta_status check_strides(const char* name, const int64_t (&stride)[3], const int64_t (&size)[3], int64_t head_dim,
                           Access access, int64_t* elements, bool* dense) {
  int order[3] = {0, 1, 2};
  std::sort(order, order + 3, [&](int a, int b) { return stride[a] < stride[b]; });
  *elements = head_dim;
  int64_t distinct = head_dim;
  for (int axis : order) {
    const auto step = static_cast<long long>(stride[axis]);
    if (size[axis] == 1) continue;  // never multiplied by anything but 0
    if (step < 0 || step % (kVectorBytes / kElementBytes) != 0) {
      return fail(VORTA_INVALID_ARGUMENT,
                  "%s stride %lld of the %s axis: must be a multiple of 8 elements (16 bytes), not negative; make the "
                  "tensor contiguous",
                  name, step, kStrideNames[axis]);
    }
    if (step == 0 && access == Access::kRead) continue;
    if (step < *elements) {
      return fail(VORTA_INVALID_ARGUMENT,
                  "%s stride %lld of the %s axis: rows overlap, since %lld elements lie between the first and the last "
                  "one of the axes with smaller strides; give strides in elements in the order batch, token, head%s, "
                  "or make the tensor contiguous",
                  name, step, kStrideNames[axis], static_cast<long long>(*elements),
                  access == Access::kRead ? " (0 repeats an axis)" : "");
    }
    if (step > (kMaxElements - *elements) / (size[axis] - 1)) {
      return fail(VORTA_INVALID_ARGUMENT,
                  "%s stride %lld of the %s axis: %lld entries reach beyond 2^56 elements; check the stride", name,
                  step, kStrideNames[axis], static_cast<long long>(size[axis]));
    }
    *elements += step * (size[axis] - 1);
    distinct *= size[axis];
  }
  *dense = *elements == distinct;
  return VORTA_OK;
}

vorta_status check_tensor(const char* name, const void* pointer, const int64_t (&stride)[3], const int64_t (&size)[3],
                          int64_t head_dim, Access access, Extent* extent) {
  if (pointer == nullptr) {
    return fail(VORTA_INVALID_ARGUMENT, "%s NULL: must be a device pointer to [B, S+T, N, D]; pass one", name);
  }
  if (!is_aligned(pointer, kVectorBytes)) {
    return fail(VORTA_INVALID_ARGUMENT, "%s %p: must be aligned to %d bytes; copy the tensor to a fresh allocation",
                name, pointer, kVectorBytes);
  }
  int64_t elements = 0;
  if (vorta_status status = check_strides(name, stride, size, head_dim, access, &elements, &extent->dense)) {
    return status;
  }
  extent->begin = reinterpret_cast<uintptr_t>(pointer);
  extent->end = extent->begin + static_cast<uintptr_t>(elements) * kElementBytes;
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
  if (is_empty(problem)) return VORTA_OK;
  Extent query{}, key{}, value{}, output{};
  const auto check = [&](const char* name, const void* pointer, const int64_t (&stride)[3], Access access,
                         Extent* extent) {
    return check_tensor(name, pointer, stride, size, problem.head_dim, access, extent);
  };
  if (vorta_status status = check("query", t.query, t.query_stride, Access::kRead, &query)) return status;
  if (vorta_status status = check("key", t.key, t.key_stride, Access::kRead, &key)) return status;
  if (vorta_status status = check("value", t.value, t.value_stride, Access::kRead, &value)) return status;
  if (vorta_status status = check("output", t.output, t.output_stride, Access::kWritten, &output)) return status;
  if (t.output == t.query || t.output == t.key || t.output == t.value || output.overlaps(query) ||
      output.overlaps(key) || output.overlaps(value)) {
    return fail(VORTA_INVALID_ARGUMENT,
                "output %p: must not share memory with query, key or value; pass memory of its own", t.output);
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

}  // namespace vorta
