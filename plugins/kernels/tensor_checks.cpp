// SPDX-License-Identifier: Apache-2.0
#include "tensor_checks.h"

#include <algorithm>

#include "last_error.h"

namespace vorta {
namespace {

constexpr int kVectorBytes = 16;                    // of every global load and store
constexpr int kElementBytes = 2;                    // float16 and bfloat16
constexpr int64_t kMaxElements = int64_t{1} << 56;  // beyond every address, and far from overflow
constexpr const char* kStrideNames[3] = {"batch", "token", "head"};

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

}  // namespace

vorta_status check_tensor(const char* name, const char* shape, const void* pointer, const int64_t (&stride)[3],
                          const int64_t (&size)[3], int64_t head_dim, Access access, Extent* extent) noexcept {
  if (pointer == nullptr) {
    return fail(VORTA_INVALID_ARGUMENT, "%s NULL: must be a device pointer to %s; pass one", name, shape);
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

}  // namespace vorta
