// SPDX-License-Identifier: Apache-2.0
//
// The rules for a tensor of an attention operator: alignment, strides, and what memory it may share.
#ifndef VORTA_TRT_KERNELS_TENSOR_CHECKS_H_
#define VORTA_TRT_KERNELS_TENSOR_CHECKS_H_

#include <cstdint>

#include "vorta_trt/routed_attention.h"

namespace vorta {

inline bool is_aligned(const void* pointer, int bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

/// The bytes from a tensor's first element to its last.
struct Extent {
  uintptr_t begin, end;
  bool dense;  // every byte belongs to an element

  bool overlaps(const Extent& other) const { return dense && other.dense && begin < other.end && other.begin < end; }
};

enum class Access { kRead, kWritten };

/// Checks a tensor of `size` rows along batch, tokens and heads, each of head_dim elements of 2 bytes. `name` and
/// `shape`, such as "[B, S+T, N, D]", are for messages; `extent` receives the range of its bytes.
vorta_status check_tensor(const char* name, const char* shape, const void* pointer, const int64_t (&stride)[3],
                          const int64_t (&size)[3], int64_t head_dim, Access access, Extent* extent) noexcept;

}  // namespace vorta

#endif  // VORTA_TRT_KERNELS_TENSOR_CHECKS_H_
