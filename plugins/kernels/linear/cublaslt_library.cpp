// SPDX-License-Identifier: Apache-2.0
#include "linear/cublaslt_library.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "last_error.h"

namespace vorta::cublaslt {
namespace {

constexpr int kMaxPath = 4096;

/// Newest first.
constexpr const char* kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12"};

/// From this library's folder, site-packages/vorta_trt/plugins, to NVIDIA's wheels of CUDA 13 and 12 beside the
/// package.
constexpr const char* kBesidePackage[] = {"../../nvidia/cu13/lib/libcublasLt.so.13",
                                          "../../nvidia/cublas/lib/libcublasLt.so.12"};

/// Where NVIDIA's installers put CUDA, which the loader is not always told.
constexpr const char* kToolkits[] = {"/usr/local/cuda/lib64/libcublasLt.so.13",
                                     "/usr/local/cuda/lib64/libcublasLt.so.12"};

struct Search {
  std::mutex mutex;
  char suggested[kMaxPath] = "";
  bool has_looked = false;  // beyond what the process has loaded
  bool is_found = false;
  Functions found;
  char path[kMaxPath] = "";
};

Search& search() {  // lives until the process ends: products may be asked for by static objects
  static auto* made = new Search;
  return *made;
}

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

bool open_named(int flags, Functions* functions) {
  for (const char* name : kNames) {
    if (open(name, flags, functions)) return true;
  }
  return false;
}

bool open_beside_package(Functions* functions) {
  Dl_info own;
  if (dladdr(reinterpret_cast<const void*>(&find_library), &own) == 0 || own.dli_fname == nullptr) return false;
  int folder = 0;  // its length, with the slash
  for (int i = 0; own.dli_fname[i] != '\0'; ++i) {
    if (own.dli_fname[i] == '/') folder = i + 1;
  }
  for (const char* file : kBesidePackage) {
    char path[kMaxPath];
    const int length = std::snprintf(path, sizeof(path), "%.*s%s", folder, own.dli_fname, file);
    if (folder > 0 && length < kMaxPath && open(path, 0, functions)) return true;
  }
  return false;
}

/// In the places where it usually is.
bool open_elsewhere(const char* suggested, Functions* functions) {
  if (open_named(0, functions)) return true;  // on the loader's path
  if (*suggested != '\0' && open(suggested, 0, functions)) return true;
  if (open_beside_package(functions)) return true;
  for (const char* path : kToolkits) {
    if (open(path, 0, functions)) return true;
  }
  return false;
}

}  // namespace

vorta_status find_library(const Functions** functions) noexcept {
  Search& s = search();
  const std::lock_guard<std::mutex> lock(s.mutex);
  *functions = nullptr;
  if (!s.is_found) {
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
    } else if (!open_named(RTLD_NOLOAD, &candidate)) {
      const bool looks = !s.has_looked;
      s.has_looked = true;
      if (!looks || !open_elsewhere(s.suggested, &candidate)) return VORTA_OK;
    }
    s.found = candidate;
    s.is_found = true;
    Dl_info where;
    if (dladdr(reinterpret_cast<const void*>(candidate.Create), &where) != 0 && where.dli_fname != nullptr) {
      std::snprintf(s.path, sizeof(s.path), "%s", where.dli_fname);
    }
  }
  *functions = &s.found;
  return VORTA_OK;
}

const char* library_path() noexcept {
  const Functions* functions = nullptr;
  return find_library(&functions) == VORTA_OK && functions != nullptr ? search().path : "";
}

void suggest_library(const char* path) noexcept {
  Search& s = search();
  const std::lock_guard<std::mutex> lock(s.mutex);
  if (path == nullptr || std::snprintf(s.suggested, sizeof(s.suggested), "%s", path) >= kMaxPath) {
    s.suggested[0] = '\0';
  }
  s.has_looked = false;
}

}  // namespace vorta::cublaslt
