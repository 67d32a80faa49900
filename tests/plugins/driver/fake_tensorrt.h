// SPDX-License-Identifier: Apache-2.0
//
// What TensorRT lends to a plugin, in its least form: a logger of each layout, symbolic dimensions, a resource context.
#ifndef VORTA_TESTS_FAKE_TENSORRT_H_
#define VORTA_TESTS_FAKE_TENSORRT_H_

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "logger_abi.h"
#include "tensorrt_api.h"

namespace driver {

namespace trt = vorta::trt;
using vorta::plugin::Severity;

// One finding, for the tests to read.
inline void print(const char* key, const std::string& value) { std::printf("%s: %s\n", key, value.c_str()); }

// --- A logger of each layout ---------------------------------------------------------------------------------------

struct PlainLogger final : vorta::plugin::plain::ILogger {
  void log(Severity severity, const char* message) noexcept override {
    print("log", std::to_string(static_cast<int>(severity)) + " " + message);
  }
};
struct VersionedLogger final : vorta::plugin::versioned::ILogger {
  trt::InterfaceInfo getInterfaceInfo() const noexcept override { return {"ILogger", 1, 0}; }
  void log(Severity severity, const char* message) noexcept override {
    print("log", std::to_string(static_cast<int>(severity)) + " " + message);
  }
};
struct PlainFinder final : vorta::plugin::plain::ILoggerFinder {
  PlainLogger logger;
  vorta::plugin::plain::ILogger* findLogger() override { return &logger; }
};
struct VersionedFinder final : vorta::plugin::versioned::ILoggerFinder {
  VersionedLogger logger;
  trt::InterfaceInfo getInterfaceInfo() const noexcept override { return {"ILoggerFinder", 1, 0}; }
  vorta::plugin::versioned::ILogger* findLogger() override { return &logger; }
};

// --- Symbolic dimensions -------------------------------------------------------------------------------------------

struct Extent final : trt::apiv::VDimensionExpr {
  int64_t value;
  explicit Extent(int64_t extent) : value(extent) {}
  bool isConstant() const override { return value >= 0; }
  int64_t getConstantValue() const override { return value; }
  bool isSizeTensor() const override { return false; }
};
struct ExtentHandle final : trt::IDimensionExpr {
  Extent implementation;
  explicit ExtentHandle(int64_t extent) : implementation(extent) { mImpl = &implementation; }
};
struct Builder final : trt::apiv::VExprBuilder {
  std::vector<std::unique_ptr<ExtentHandle>> constants;
  const trt::IDimensionExpr* constant(int64_t value) override {
    return constants.emplace_back(std::make_unique<ExtentHandle>(value)).get();
  }
  const trt::IDimensionExpr* operation(trt::DimensionOperation, const trt::IDimensionExpr&,
                                       const trt::IDimensionExpr&) override {
    return nullptr;  // no plugin computes with extents
  }
  const trt::IDimensionExpr* declareSizeTensor(int32_t, const trt::IDimensionExpr&,
                                               const trt::IDimensionExpr&) override {
    return nullptr;
  }
};
struct BuilderHandle final : trt::IExprBuilder {
  Builder implementation;
  BuilderHandle() { mImpl = &implementation; }
};
struct Context final : trt::IPluginResourceContext {
  trt::IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
  trt::IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
};

}  // namespace driver

#endif  // VORTA_TESTS_FAKE_TENSORRT_H_
