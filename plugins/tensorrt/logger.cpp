// SPDX-License-Identifier: Apache-2.0
#include "logger.h"

#include <dlfcn.h>
#include <link.h>

#include <atomic>
#include <cstdio>

#include "field_list.h"
#include "logger_abi.h"

namespace vorta::plugin {
namespace {

enum class LoggerLayout { kUnknown, kPlain, kVersioned };

// One instance of this library serves every TensorRT of the process; of two with the same layout the last one counts.
std::atomic<plain::ILoggerFinder*> plainFinder{nullptr};
std::atomic<versioned::ILoggerFinder*> versionedFinder{nullptr};

// `version` is major * 10000 + minor * 100 + patch, and was major * 1000 + ... up to TensorRT 9. TensorRT-RTX counts
// from 1; 1.7 has the new layout, older ones were not looked at.
LoggerLayout layoutOf(int32_t version) {
  constexpr int32_t kTensorRt86 = 8600;
  constexpr int32_t kTensorRt87 = 8700;
  constexpr int32_t kRtxVersioned = 10700;
  constexpr int32_t kTensorRt10 = 100000;
  constexpr int32_t kTensorRt11 = 110000;
  if (version >= kTensorRt11) return LoggerLayout::kVersioned;
  if (version >= kTensorRt10) return LoggerLayout::kPlain;
  if (version >= kTensorRt86 && version < kTensorRt87) return LoggerLayout::kPlain;
  return version >= kRtxVersioned ? LoggerLayout::kVersioned : LoggerLayout::kUnknown;
}

// Asks the library in which `object`'s virtual table lies, i.e. the TensorRT that made it.
LoggerLayout layoutOfMakerOf(void* object) {
  Dl_info symbol;
  link_map* library = nullptr;
  const void* virtualTable = *static_cast<void**>(object);
  if (dladdr1(virtualTable, &symbol, reinterpret_cast<void**>(&library), RTLD_DL_LINKMAP) == 0 || library == nullptr) {
    return LoggerLayout::kUnknown;
  }
  void* handle = dlopen(library->l_name, RTLD_NOW | RTLD_NOLOAD);  // an empty name is the program itself
  if (handle == nullptr) return LoggerLayout::kUnknown;
  const auto version = reinterpret_cast<int32_t (*)()>(dlsym(handle, "getInferLibVersion"));
  const LoggerLayout layout = version == nullptr ? LoggerLayout::kUnknown : layoutOf(version());
  dlclose(handle);
  return layout;
}

template <typename Finder>
bool logThrough(const std::atomic<Finder*>& remembered, Severity severity, const char* line) noexcept {
  Finder* finder = remembered.load();
  if (finder == nullptr) return false;
  try {  // findLogger() is not noexcept; without a logger the message still reaches stderr
    auto* logger = finder->findLogger();
    if (logger != nullptr) logger->log(severity, line);
    return logger != nullptr;
  } catch (...) {
    return false;
  }
}

void logLine(Severity severity, const char* name, const char* where, const char* message) noexcept {
  char line[2048];  // no allocation: this also reports std::bad_alloc
  std::snprintf(line, sizeof(line), "[%s::%s] %s: %s", kOperatorNamespace, name, where, message);
  if (logThrough(versionedFinder, severity, line) || logThrough(plainFinder, severity, line)) return;
  if (severity <= Severity::kWARNING) std::fprintf(stderr, "%s\n", line);
}

}  // namespace

void rememberLoggerFinder(void* finder) noexcept {
  switch (finder == nullptr ? LoggerLayout::kUnknown : layoutOfMakerOf(finder)) {
    case LoggerLayout::kPlain:
      plainFinder.store(static_cast<plain::ILoggerFinder*>(finder));
      break;
    case LoggerLayout::kVersioned:
      versionedFinder.store(static_cast<versioned::ILoggerFinder*>(finder));
      break;
    case LoggerLayout::kUnknown:
      break;
  }
}

void logError(const char* name, const char* where, const char* message) noexcept {
  logLine(Severity::kERROR, name, where, message);
}

void logWarning(const char* name, const char* where, const char* message) noexcept {
  logLine(Severity::kWARNING, name, where, message);
}

void logInformation(const char* name, const char* where, const char* message) noexcept {
  logLine(Severity::kINFO, name, where, message);
}

}  // namespace vorta::plugin
