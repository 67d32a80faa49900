// SPDX-License-Identifier: Apache-2.0
//
// The message behind vorta_last_error(): one fixed buffer per thread, so that reporting an error neither throws nor
// allocates.
#ifndef VORTA_TRT_KERNELS_LAST_ERROR_H_
#define VORTA_TRT_KERNELS_LAST_ERROR_H_

#include "vorta_trt/routed_attention.h"

namespace vorta {

/// Stores a printf-style message for this thread and returns `status`, so that a check reads `return fail(...)`.
__attribute__((format(printf, 2, 3))) vorta_status fail(vorta_status status, const char* format, ...) noexcept;

/// This thread's last message, "" if there is none.
const char* last_error() noexcept;

}  // namespace vorta

#endif  // VORTA_TRT_KERNELS_LAST_ERROR_H_
