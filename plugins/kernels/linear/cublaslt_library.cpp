// SPDX-License-Identifier: Apache-2.0
#include "linear/cublaslt_library.h"

#include "runtime_library.h"

namespace vorta::cublaslt {
namespace {

/// Newest first, as in the lists below.
constexpr const char* kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12", nullptr};

/// NVIDIA's wheels of CUDA 13 and 12.
constexpr const char* kBesidePackage[] = {"../../nvidia/cu13/lib/libcublasLt.so.13",
                                          "../../nvidia/cublas/lib/libcublasLt.so.12", nullptr};

/// Where NVIDIA's installers put CUDA, which the loader is not always told.
constexpr const char* kToolkits[] = {"/usr/local/cuda/lib64/libcublasLt.so.13",
                                     "/usr/local/cuda/lib64/libcublasLt.so.12", nullptr};

#define VORTA_NAME(result, name, arguments) "cublasLt" #name,
constexpr const char* kFunctions[] = {VORTA_CUBLASLT_FUNCTIONS(VORTA_NAME) nullptr};
#undef VORTA_NAME

constexpr LibraryFacts kFacts = {
    kLibraryVariable, "a libcublasLt.so of CUDA 12 or 13", "cuBLASLt", kNames, kBesidePackage, kToolkits, kFunctions};

RuntimeLibrary& library() {  // lives until the process ends: products may be asked for by static objects
  static auto* made = new RuntimeLibrary(kFacts);
  return *made;
}

}  // namespace

vorta_status find_library(const Functions** functions) noexcept {
  *functions = nullptr;
  void* handle = nullptr;
  if (vorta_status status = library().find(&handle)) return status;
  if (handle == nullptr) return VORTA_OK;
  static const auto found = bind_functions<Functions>(handle, kFunctions);  // the handle stays the same
  *functions = &found;
  return VORTA_OK;
}

const char* library_path() noexcept { return library().path(); }

void suggest_library(const char* path) noexcept { library().suggest(path); }

}  // namespace vorta::cublaslt
