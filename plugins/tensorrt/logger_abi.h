// SPDX-License-Identifier: Apache-2.0
//
// TensorRT's logger, in its two layouts. Unlike the plugin interfaces, these two classes were no versioned interfaces
// in TensorRT 10 and became such in TensorRT 11, which moved their functions from slot 0 to slot 4. One binary serves
// both, so both are declared here, always by us, and logger.cpp asks the library that it talks to for its version.
#ifndef VORTA_TENSORRT_LOGGER_ABI_H_
#define VORTA_TENSORRT_LOGGER_ABI_H_

#include "tensorrt_api.h"

namespace vorta::plugin {

// Severities, which have the same values in every version.
enum class Severity : int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };

// TensorRT 8.6 and 10.
namespace plain {

class ILogger {
 public:
  virtual void log(Severity severity, const char* message) noexcept = 0;
  virtual ~ILogger() = default;
};

class ILoggerFinder {
 public:
  virtual ILogger* findLogger() = 0;

 protected:
  virtual ~ILoggerFinder() = default;
};

}  // namespace plain

// TensorRT 11 and TensorRT-RTX from 1.7.
namespace versioned {

class ILogger : public trt::IVersionedInterface {
 public:
  virtual void log(Severity severity, const char* message) noexcept = 0;
};

class ILoggerFinder : public trt::IVersionedInterface {
 public:
  // The logger of the engine or builder that is inside one of the plugin's methods on this thread; may be null.
  virtual ILogger* findLogger() = 0;

 protected:
  ~ILoggerFinder() override = default;
};

}  // namespace versioned

}  // namespace vorta::plugin

#endif  // VORTA_TENSORRT_LOGGER_ABI_H_
