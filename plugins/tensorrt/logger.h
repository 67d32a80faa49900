// SPDX-License-Identifier: Apache-2.0
//
// The only way in which the plugin logs, and the only guard that keeps exceptions inside `noexcept` callbacks.
#ifndef VORTA_TENSORRT_LOGGER_H_
#define VORTA_TENSORRT_LOGGER_H_

#include <exception>
#include <stdexcept>
#include <utility>

namespace vorta::plugin {

// A rule was broken; what() names argument, value, rule and remedy.
class PluginError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Sets where messages go from now on: `finder` is an ILoggerFinder of whichever TensorRT loaded this library, and stays
// its property. If it is null, or of a TensorRT whose layout is not known, messages go to stderr.
void rememberLoggerFinder(void* finder) noexcept;

// Sends "[vorta::NAME] where: message" to TensorRT's logger, to stderr where there is none; `name` is the operator's.
void logError(const char* name, const char* where, const char* message) noexcept;

// Send messages that are no errors in the same way. Without a logger, warnings go to stderr and information is dropped.
void logWarning(const char* name, const char* where, const char* message) noexcept;
void logInformation(const char* name, const char* where, const char* message) noexcept;

// Runs `body`; an exception becomes a message and the value `failure`.
template <typename Result, typename Body>
Result guarded(const char* name, const char* where, Result failure, Body&& body) noexcept {
  try {
    return std::forward<Body>(body)();
  } catch (const std::exception& error) {
    logError(name, where, error.what());
  } catch (...) {
    logError(name, where, "unknown exception");
  }
  return failure;
}

}  // namespace vorta::plugin

#endif  // VORTA_TENSORRT_LOGGER_H_
