// SPDX-License-Identifier: Apache-2.0
//
// Finds a shared library in the process or on the machine when it is first needed, so that ours neither links to it nor
// carries it.
#ifndef VORTA_TRT_KERNELS_RUNTIME_LIBRARY_H_
#define VORTA_TRT_KERNELS_RUNTIME_LIBRARY_H_

#include <dlfcn.h>

#include <cstring>
#include <mutex>

#include "vorta_trt/routed_attention.h"

namespace vorta {

/// The facts about a library by which it is found. Lists end with a null pointer.
struct LibraryFacts {
  const char* variable;               // of the environment; names the file to take, whatever the process has loaded
  const char* description;            // "a libname.so of ...", for messages
  const char* product;                // whose functions it has, for messages
  const char* const* names;           // as the loader knows them, best first
  const char* const* beside_package;  // from this library's folder, site-packages/vorta_trt/plugins
  const char* const* elsewhere;       // absolute paths
  const char* const* functions;       // all that are called; a file without one of them is another library
};

/// A library is looked for in what the process has loaded, on the loader's path, in the file that was suggested, beside
/// this package and elsewhere. Once found, it stays loaded; until then every call looks at what the process has loaded,
/// since torch may be imported later.
class RuntimeLibrary {
 public:
  explicit RuntimeLibrary(const LibraryFacts& facts) : facts_(facts) {}

  /// Leaves its handle for dlsym() in `handle`, null where there is none. Fails if the environment names a file that is
  /// no such library.
  vorta_status find(void** handle) noexcept;

  /// The file that find() finds, "" where there is none.
  const char* path() noexcept;

  /// Names a file to try where neither the process nor the loader has the library; null for none.
  void suggest(const char* path) noexcept;

 private:
  static constexpr int kMaxPath = 4096;

  bool open(const char* name, int flags) noexcept;
  bool open_any(const char* const* names, int flags) noexcept;
  bool open_beside_package() noexcept;
  bool open_elsewhere() noexcept;

  const LibraryFacts& facts_;
  std::mutex mutex_;
  void* handle_ = nullptr;
  bool has_looked_ = false;  // beyond what the process has loaded
  char suggested_[kMaxPath] = "";
  char path_[kMaxPath] = "";
};

/// The functions of a library as a struct of function pointers alone, in the order of `names`.
template <class Functions, size_t kCount>
Functions bind_functions(void* handle, const char* const (&names)[kCount]) {
  static_assert(sizeof(Functions) == (kCount - 1) * sizeof(void*), "one name for each function, and a null pointer");
  void* addresses[kCount - 1];
  for (size_t i = 0; i + 1 < kCount; ++i) addresses[i] = dlsym(handle, names[i]);
  Functions functions;
  std::memcpy(&functions, addresses, sizeof(functions));
  return functions;
}

}  // namespace vorta

#endif  // VORTA_TRT_KERNELS_RUNTIME_LIBRARY_H_
