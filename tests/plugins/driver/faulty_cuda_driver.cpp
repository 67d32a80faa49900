// SPDX-License-Identifier: Apache-2.0
//
// A libcuda.so.1 in which something is wrong: the CUDA runtime inside libvorta_trt.so finds it on the loader's path and
// reports what it says. VORTA_FAULT_INIT is the result of cuInit(), VORTA_FAULT_VERSION the driver's version; every
// other function fails.
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace {

constexpr int kSuccess = 0, kUnknown = 999;

int said(const char* variable, int otherwise) {
  const char* value = std::getenv(variable);
  return value == nullptr ? otherwise : std::atoi(value);
}

int fails() { return kUnknown; }

}  // namespace

extern "C" {

int cuInit(unsigned /*flags*/) { return said("VORTA_FAULT_INIT", kSuccess); }

int cuDriverGetVersion(int* version) {
  *version = said("VORTA_FAULT_VERSION", 13000);
  return kSuccess;
}

int cuGetExportTable(const void** table, const void* /*id*/) {
  *table = nullptr;
  return kUnknown;
}

int cuGetProcAddress_v2(const char* name, void** function, int /*version*/, uint64_t /*flags*/, int* found) {
  if (found != nullptr) *found = 0;
  *function = reinterpret_cast<void*>(fails);
  if (std::strcmp(name, "cuInit") == 0) *function = reinterpret_cast<void*>(cuInit);
  if (std::strcmp(name, "cuDriverGetVersion") == 0) *function = reinterpret_cast<void*>(cuDriverGetVersion);
  if (std::strcmp(name, "cuGetProcAddress") == 0) *function = reinterpret_cast<void*>(cuGetProcAddress_v2);
  return kSuccess;
}

int cuGetProcAddress(const char* name, void** function, int version, uint64_t flags) {
  return cuGetProcAddress_v2(name, function, version, flags, nullptr);
}

}  // extern "C"
