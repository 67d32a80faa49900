// SPDX-License-Identifier: Apache-2.0
#ifndef VORTA_TRT_KERNELS_EXCHANGE_NCCL_LIBRARY_H_
#define VORTA_TRT_KERNELS_EXCHANGE_NCCL_LIBRARY_H_

#include "exchange/nccl_api.h"

namespace vorta::nccl {

/// Names the file of NCCL to take, whatever the process has loaded.
inline constexpr const char* kLibraryVariable = "VORTA_TRT_NCCL";

/// The functions of NCCL, which is opened by the first call. Fails where there is none, or one that is too old.
vorta_status find_library(const Functions** functions) noexcept;

/// A failure of NCCL as a status with its own words. `comm` may be null.
vorta_status report(const char* step, const Functions& functions, Result result, Comm comm) noexcept;

}  // namespace vorta::nccl

#endif  // VORTA_TRT_KERNELS_EXCHANGE_NCCL_LIBRARY_H_
