// SPDX-License-Identifier: Apache-2.0
#include "exchange/nccl_library.h"

#include "last_error.h"
#include "runtime_library.h"

namespace vorta::nccl {
namespace {

constexpr const char* kNames[] = {"libnccl.so.2", nullptr};
constexpr const char* kBesidePackage[] = {"../../nvidia/nccl/lib/libnccl.so.2", nullptr};
constexpr const char* kElsewhere[] = {nullptr};

#define VORTA_NAME(result, name, arguments) "nccl" #name,
constexpr const char* kFunctions[] = {VORTA_NCCL_FUNCTIONS(VORTA_NAME) nullptr};
#undef VORTA_NAME

constexpr LibraryFacts kFacts = {kLibraryVariable, "a libnccl.so of NCCL 2", "NCCL", kNames, kBesidePackage, kElsewhere,
                                 kFunctions};

/// The first version with all functions above, of which ncclGetLastError() is the newest.
constexpr int kOldestVersion = 21300;

RuntimeLibrary& library() {  // lives until the process ends
  static auto* made = new RuntimeLibrary(kFacts);
  return *made;
}

}  // namespace

vorta_status find_library(const Functions** functions) noexcept {
  *functions = nullptr;
  void* handle = nullptr;
  if (vorta_status status = library().find(&handle)) return status;
  if (handle == nullptr) {
    return fail(VORTA_UNSUPPORTED,
                "NCCL: no libnccl.so.2 is loaded, on the loader's path, or in NVIDIA's wheels: several GPUs exchange "
                "through it; pip install nvidia-nccl-cu13 (torch's CUDA build brings it), or name the file in %s",
                kLibraryVariable);
  }
  static const auto found = bind_functions<Functions>(handle, kFunctions);  // the handle stays the same
  int version = 0;
  if (Result result = found.GetVersion(&version)) return report("ncclGetVersion", found, result, nullptr);
  if (version < kOldestVersion) {
    return fail(VORTA_UNSUPPORTED, "NCCL %s: version %d is too old: must be %d (2.13) or newer; update NCCL",
                library().path(), version, kOldestVersion);
  }
  *functions = &found;
  return VORTA_OK;
}

vorta_status report(const char* step, const Functions& functions, Result result, Comm comm) noexcept {
  const char* detail = functions.GetLastError(comm);
  const bool has_detail = detail != nullptr && *detail != '\0';
  return fail(VORTA_CUDA_ERROR,
              "%s: NCCL says: %s%s%s; see the other ranks' messages, and set NCCL_DEBUG=WARN for more", step,
              functions.GetErrorString(result), has_detail ? ": " : "", has_detail ? detail : "");
}

}  // namespace vorta::nccl

void vorta_suggest_nccl(const char* path) { vorta::nccl::library().suggest(path); }

const char* vorta_nccl_path(void) { return vorta::nccl::library().path(); }

vorta_status vorta_nccl_version(int32_t* version) {
  if (version == nullptr) {
    return vorta::fail(VORTA_INVALID_ARGUMENT,
                       "version NULL: must point to an int32_t that takes the answer; pass one");
  }
  const vorta::nccl::Functions* functions = nullptr;
  if (vorta_status status = vorta::nccl::find_library(&functions)) return status;
  if (vorta::nccl::Result result = functions->GetVersion(version)) {
    return vorta::nccl::report("ncclGetVersion", *functions, result, nullptr);
  }
  return VORTA_OK;
}
