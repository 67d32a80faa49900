// SPDX-License-Identifier: Apache-2.0
#include "linear/cublaslt_library.h"

#include <dlfcn.h>

#include <cstdlib>
#include <initializer_list>
#include <mutex>

#include "last_error.h"

namespace vorta::cublaslt {
namespace {

/// Newest first.
constexpr const char* kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12"};

/// False if a function is missing, as in the empty libraries that stand in for cuBLAS beside TensorRT 8.6.
bool bind(void* library, Functions* functions) {
#define VORTA_BIND(result, name, arguments)                                                  \
  functions->name = reinterpret_cast<result(*) arguments>(dlsym(library, "cublasLt" #name)); \
  if (functions->name == nullptr) return false;
  VORTA_CUBLASLT_FUNCTIONS(VORTA_BIND)
#undef VORTA_BIND
  return true;
}

bool open(const char* name, int flags, Functions* functions) {
  void* library = dlopen(name, RTLD_LAZY | RTLD_LOCAL | flags);
  if (library == nullptr) return false;
  if (bind(library, functions)) return true;  // and stays open until the process ends
  dlclose(library);
  return false;
}

bool open_any(Functions* functions) {
  for (int flags : {RTLD_NOLOAD, 0}) {  // what the process has, then what the loader finds
    for (const char* name : kNames) {
      if (open(name, flags, functions)) return true;
    }
  }
  return false;
}

}  // namespace

vorta_status find_library(const Functions** functions) noexcept {
  static std::mutex mutex;
  static Functions found;
  static bool is_found = false;
  const std::lock_guard<std::mutex> lock(mutex);
  *functions = nullptr;
  if (!is_found) {
    Functions candidate;
    const char* named = std::getenv(kLibraryVariable);
    if (named != nullptr && *named != '\0') {
      if (!open(named, 0, &candidate)) {
        const char* reason = dlerror();
        return fail(VORTA_INVALID_ARGUMENT,
                    "%s=%s in the environment: must name a libcublasLt.so of CUDA 12 or 13 (%s); correct the path or "
                    "unset it",
                    kLibraryVariable, named, reason != nullptr ? reason : "a function of cuBLASLt is missing in it");
      }
    } else if (!open_any(&candidate)) {
      return VORTA_OK;
    }
    found = candidate;
    is_found = true;
  }
  *functions = &found;
  return VORTA_OK;
}

}  // namespace vorta::cublaslt
