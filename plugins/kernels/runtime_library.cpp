// SPDX-License-Identifier: Apache-2.0
#include "runtime_library.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

#include "last_error.h"

namespace vorta {

/// A file that lacks a function is not the library: empty ones stand in for cuBLAS beside TensorRT 8.6.
bool RuntimeLibrary::open(const char* name, int flags) noexcept {
  void* library = dlopen(name, RTLD_LAZY | RTLD_LOCAL | flags);
  if (library == nullptr) return false;
  void* address = nullptr;
  for (const char* const* function = facts_.functions; *function != nullptr; ++function) {
    address = dlsym(library, *function);
    if (address == nullptr) {
      dlclose(library);
      return false;
    }
  }
  handle_ = library;  // and stays open until the process ends
  Dl_info where;
  if (dladdr(address, &where) != 0 && where.dli_fname != nullptr) {
    std::snprintf(path_, sizeof(path_), "%s", where.dli_fname);
  }
  return true;
}

bool RuntimeLibrary::open_any(const char* const* names, int flags) noexcept {
  for (; *names != nullptr; ++names) {
    if (open(*names, flags)) return true;
  }
  return false;
}

bool RuntimeLibrary::open_beside_package() noexcept {
  static const char own_symbol = 0;
  Dl_info own;
  if (dladdr(&own_symbol, &own) == 0 || own.dli_fname == nullptr) return false;
  int folder = 0;  // its length, with the slash
  for (int i = 0; own.dli_fname[i] != '\0'; ++i) {
    if (own.dli_fname[i] == '/') folder = i + 1;
  }
  if (folder == 0) return false;
  for (const char* const* file = facts_.beside_package; *file != nullptr; ++file) {
    char path[kMaxPath];
    const int length = std::snprintf(path, sizeof(path), "%.*s%s", folder, own.dli_fname, *file);
    if (length < kMaxPath && open(path, 0)) return true;
  }
  return false;
}

bool RuntimeLibrary::open_elsewhere() noexcept {
  if (open_any(facts_.names, 0)) return true;  // on the loader's path
  if (*suggested_ != '\0' && open(suggested_, 0)) return true;
  return open_beside_package() || open_any(facts_.elsewhere, 0);
}

vorta_status RuntimeLibrary::find(void** handle) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  *handle = nullptr;
  if (handle_ == nullptr) {
    const char* named = std::getenv(facts_.variable);
    if (named != nullptr && *named != '\0') {
      if (!open(named, 0)) {
        const char* reason = dlerror();
        char missing[128];
        std::snprintf(missing, sizeof(missing), "a function of %s is missing in it", facts_.product);
        return fail(VORTA_INVALID_ARGUMENT, "%s=%s in the environment: must name %s (%s); correct the path or unset it",
                    facts_.variable, named, facts_.description, reason != nullptr ? reason : missing);
      }
    } else if (!open_any(facts_.names, RTLD_NOLOAD)) {
      const bool looks = !has_looked_;
      has_looked_ = true;
      if (!looks || !open_elsewhere()) return VORTA_OK;
    }
  }
  *handle = handle_;
  return VORTA_OK;
}

const char* RuntimeLibrary::path() noexcept {
  void* handle = nullptr;
  return find(&handle) == VORTA_OK && handle != nullptr ? path_ : "";
}

void RuntimeLibrary::suggest(const char* path) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (path == nullptr || std::snprintf(suggested_, sizeof(suggested_), "%s", path) >= kMaxPath) suggested_[0] = '\0';
  has_looked_ = false;
}

}  // namespace vorta
