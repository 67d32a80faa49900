// SPDX-License-Identifier: Apache-2.0
//
// The one way by which the plugin speaks, and the one guard that keeps exceptions inside `noexcept` callbacks.
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

// Where messages go from now on: `finder` is an ILoggerFinder of whichever TensorRT loaded this library, and stays its
// property. Null, or one of a TensorRT whose layout is not known, leaves stderr.
void rememberLoggerFinder(void* finder) noexcept;

// Sends "[vorta::NAME] where: message" to TensorRT's logger, to stderr where there is none; `name` is the operator's.
void logError(const char* name, const char* where, const char* message) noexcept;

// The same for what is no error; without a logger a warning goes to stderr, and information nowhere.
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
