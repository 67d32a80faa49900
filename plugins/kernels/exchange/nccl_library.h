// SPDX-License-Identifier: Apache-2.0
#ifndef VORTA_TRT_KERNELS_EXCHANGE_NCCL_LIBRARY_H_
#define VORTA_TRT_KERNELS_EXCHANGE_NCCL_LIBRARY_H_

#include "exchange/nccl_api.h"

namespace vorta::nccl {

/// Names the file of NCCL to take, whatever the process has loaded.
inline constexpr const char* kLibraryVariable = "VORTA_TRT_NCCL";

/// Finds the functions of NCCL, which the first call opens. Fails if there is no NCCL, or one that is too old.
vorta_status find_library(const Functions** functions) noexcept;

/// Turns a failure of NCCL into a status with NCCL's own message. `comm` may be null.
vorta_status report(const char* step, const Functions& functions, Result result, Comm comm) noexcept;

}  // namespace vorta::nccl

#endif  // VORTA_TRT_KERNELS_EXCHANGE_NCCL_LIBRARY_H_
