// SPDX-License-Identifier: Apache-2.0
//
// Finds libcublasLt in the process or on the machine, at the first product.
#ifndef VORTA_TRT_KERNELS_LINEAR_CUBLASLT_LIBRARY_H_
#define VORTA_TRT_KERNELS_LINEAR_CUBLASLT_LIBRARY_H_

#include "linear/cublaslt_api.h"
#include "vorta_trt/routed_attention.h"

namespace vorta::cublaslt {

/// Names the file to take, whatever the process has loaded.
inline constexpr const char* kLibraryVariable = "VORTA_TRT_CUBLASLT";

/// The library's functions, NULL in `functions` where there is none; ../runtime_library.h says where it is looked for.
/// Fails if the environment names a file that is no libcublasLt.
vorta_status find_library(const Functions** functions) noexcept;

/// The file of the library that `find_library` finds, "" where there is none.
const char* library_path() noexcept;

/// Names a file to try where neither the process nor the loader has the library; NULL for none.
void suggest_library(const char* path) noexcept;

}  // namespace vorta::cublaslt

#endif  // VORTA_TRT_KERNELS_LINEAR_CUBLASLT_LIBRARY_H_
