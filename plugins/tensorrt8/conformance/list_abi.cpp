// SPDX-License-Identifier: Apache-2.0
//
// Prints, as JSON, what the plugin relies on in the binary interface of TensorRT 8.6, as ../../tensorrt/conformance
// does for the newer ones. Compiled against our declarations and against the real headers
// (-DVORTA_USE_TENSORRT8_HEADERS), both have to agree; the probes make the compiler compare every signature.
#include <type_traits>

#include "facts.h"
#include "tensorrt8_api.h"
#if !defined(VORTA_USE_TENSORRT8_HEADERS)
#include "logger_abi.h"  // brings declarations of newer versions with it
#endif

namespace {

namespace trt = vorta::trt8;
using namespace conformance;

// A slot among overloads: the function of this type.
#define OVERLOAD(type, function, result, ...) \
  Fact { #function, slotOf(static_cast<result (trt::type::*)(__VA_ARGS__)>(&trt::type::function)) }

// --- Probes: the least classes that implement each interface; `override` makes the compiler check the signatures. ---

struct PluginProbe final : trt::IPluginV2DynamicExt {
  const trt::AsciiChar* getPluginType() const noexcept override { return ""; }
  const trt::AsciiChar* getPluginVersion() const noexcept override { return ""; }
  int32_t getNbOutputs() const noexcept override { return 1; }
  int32_t initialize() noexcept override { return 0; }
  void terminate() noexcept override {}
  size_t getSerializationSize() const noexcept override { return 0; }
  void serialize(void*) const noexcept override {}
  void destroy() noexcept override {}
  void setPluginNamespace(const trt::AsciiChar*) noexcept override {}
  const trt::AsciiChar* getPluginNamespace() const noexcept override { return ""; }
  trt::DataType getOutputDataType(int32_t, const trt::DataType*, int32_t) const noexcept override {
    return trt::DataType::kHALF;
  }
  void attachToContext(cudnnContext*, cublasContext*, trt::IGpuAllocator*) noexcept override {}
  void detachFromContext() noexcept override {}
  trt::IPluginV2DynamicExt* clone() const noexcept override { return nullptr; }
  trt::DimsExprs getOutputDimensions(int32_t, const trt::DimsExprs*, int32_t, trt::IExprBuilder&) noexcept override {
    return {};
  }
  bool supportsFormatCombination(int32_t, const trt::PluginTensorDesc*, int32_t, int32_t) noexcept override {
    return false;
  }
  void configurePlugin(const trt::DynamicPluginTensorDesc*, int32_t, const trt::DynamicPluginTensorDesc*,
                       int32_t) noexcept override {}
  size_t getWorkspaceSize(const trt::PluginTensorDesc*, int32_t, const trt::PluginTensorDesc*,
                          int32_t) const noexcept override {
    return 0;
  }
  int32_t enqueue(const trt::PluginTensorDesc*, const trt::PluginTensorDesc*, const void* const*, void* const*, void*,
                  cudaStream_t) noexcept override {
    return 0;
  }
};

struct CreatorProbe final : trt::IPluginCreator {
  const trt::AsciiChar* getPluginName() const noexcept override { return ""; }
  const trt::AsciiChar* getPluginVersion() const noexcept override { return ""; }
  const trt::PluginFieldCollection* getFieldNames() noexcept override { return nullptr; }
  trt::IPluginV2* createPlugin(const trt::AsciiChar*, const trt::PluginFieldCollection*) noexcept override {
    return nullptr;
  }
  trt::IPluginV2* deserializePlugin(const trt::AsciiChar*, const void*, size_t) noexcept override { return nullptr; }
  void setPluginNamespace(const trt::AsciiChar*) noexcept override {}
  const trt::AsciiChar* getPluginNamespace() const noexcept override { return ""; }
};

struct DimensionExprProbe : trt::IDimensionExpr {
  static constexpr auto pointer = &DimensionExprProbe::mImpl;
  using trt::IDimensionExpr::mImpl;
};

struct ExprBuilderProbe : trt::IExprBuilder {
  static constexpr auto pointer = &ExprBuilderProbe::mImpl;
  using trt::IExprBuilder::mImpl;
};

void printEnums() {
  std::printf("  \"enums\": {\n");
  printFacts("DataType",
             {VALUE(DataType, kFLOAT), VALUE(DataType, kHALF), VALUE(DataType, kINT8), VALUE(DataType, kINT32),
              VALUE(DataType, kBOOL), VALUE(DataType, kUINT8), VALUE(DataType, kFP8)});
  std::printf(",\n");
  printFacts("TensorFormat", {VALUE(TensorFormat, kLINEAR), VALUE(TensorFormat, kHWC8)});
  std::printf(",\n");
  printFacts("PluginFieldType",
             {VALUE(PluginFieldType, kFLOAT16), VALUE(PluginFieldType, kFLOAT32), VALUE(PluginFieldType, kFLOAT64),
              VALUE(PluginFieldType, kINT8), VALUE(PluginFieldType, kINT16), VALUE(PluginFieldType, kINT32),
              VALUE(PluginFieldType, kCHAR), VALUE(PluginFieldType, kDIMS), VALUE(PluginFieldType, kUNKNOWN)});
  std::printf(",\n");
  printFacts("PluginVersion", {VALUE(PluginVersion, kV2), VALUE(PluginVersion, kV2_EXT),
                               VALUE(PluginVersion, kV2_IOEXT), VALUE(PluginVersion, kV2_DYNAMICEXT)});
  std::printf("\n  },\n");
}

void printLayouts() {
  std::printf("  \"layouts\": {\n");
  printFacts("Dims", {SIZES(Dims), Fact{"MAX_DIMS", trt::Dims::MAX_DIMS}, FIELD(Dims, nbDims), FIELD(Dims, d)});
  std::printf(",\n");
  printFacts("PluginTensorDesc", {SIZES(PluginTensorDesc), FIELD(PluginTensorDesc, dims), FIELD(PluginTensorDesc, type),
                                  FIELD(PluginTensorDesc, format), FIELD(PluginTensorDesc, scale)});
  std::printf(",\n");
  printFacts("DynamicPluginTensorDesc", {SIZES(DynamicPluginTensorDesc), FIELD(DynamicPluginTensorDesc, desc),
                                         FIELD(DynamicPluginTensorDesc, min), FIELD(DynamicPluginTensorDesc, max)});
  std::printf(",\n");
  printFacts("PluginField", {SIZES(PluginField), FIELD(PluginField, name), FIELD(PluginField, data),
                             FIELD(PluginField, type), FIELD(PluginField, length)});
  std::printf(",\n");
  printFacts("PluginFieldCollection", {SIZES(PluginFieldCollection), FIELD(PluginFieldCollection, nbFields),
                                       FIELD(PluginFieldCollection, fields)});
  std::printf(",\n");
  printFacts("DimsExprs", {SIZES(DimsExprs), FIELD(DimsExprs, nbDims), FIELD(DimsExprs, d)});
  std::printf(",\n");
  printFacts("IDimensionExpr", {SIZES(IDimensionExpr), Fact{"mImpl", offsetOf(DimensionExprProbe::pointer)}});
  std::printf(",\n");
  printFacts("IExprBuilder", {SIZES(IExprBuilder), Fact{"mImpl", offsetOf(ExprBuilderProbe::pointer)}});
  std::printf("\n  },\n");
}

void printSlots() {
  std::printf("  \"slots\": {\n");
  printFacts("IPluginV2",
             {SLOT(IPluginV2, getTensorRTVersion), SLOT(IPluginV2, getPluginType), SLOT(IPluginV2, getPluginVersion),
              SLOT(IPluginV2, getNbOutputs), SLOT(IPluginV2, getOutputDimensions), SLOT(IPluginV2, supportsFormat),
              SLOT(IPluginV2, configureWithFormat), SLOT(IPluginV2, initialize), SLOT(IPluginV2, terminate),
              SLOT(IPluginV2, getWorkspaceSize), SLOT(IPluginV2, enqueue), SLOT(IPluginV2, getSerializationSize),
              SLOT(IPluginV2, serialize), SLOT(IPluginV2, destroy), SLOT(IPluginV2, clone),
              SLOT(IPluginV2, setPluginNamespace), SLOT(IPluginV2, getPluginNamespace)});
  std::printf(",\n");
  printFacts("IPluginV2Ext",
             {SLOT(IPluginV2Ext, getOutputDataType), SLOT(IPluginV2Ext, isOutputBroadcastAcrossBatch),
              SLOT(IPluginV2Ext, canBroadcastInputAcrossBatch), SLOT(IPluginV2Ext, configurePlugin),
              SLOT(IPluginV2Ext, attachToContext), SLOT(IPluginV2Ext, detachFromContext), SLOT(IPluginV2Ext, clone)});
  std::printf(",\n");
  using trt::DimsExprs, trt::DynamicPluginTensorDesc, trt::IExprBuilder, trt::PluginTensorDesc;
  printFacts(
      "IPluginV2DynamicExt",
      {OVERLOAD(IPluginV2DynamicExt, getOutputDimensions, DimsExprs, int32_t, const DimsExprs*, int32_t, IExprBuilder&),
       SLOT(IPluginV2DynamicExt, supportsFormatCombination),
       OVERLOAD(IPluginV2DynamicExt, configurePlugin, void, const DynamicPluginTensorDesc*, int32_t,
                const DynamicPluginTensorDesc*, int32_t),
       Fact{"getWorkspaceSize", slotOf(static_cast<size_t (trt::IPluginV2DynamicExt::*)(
                                           const PluginTensorDesc*, int32_t, const PluginTensorDesc*, int32_t) const>(
                                    &trt::IPluginV2DynamicExt::getWorkspaceSize))},
       OVERLOAD(IPluginV2DynamicExt, enqueue, int32_t, const PluginTensorDesc*, const PluginTensorDesc*,
                const void* const*, void* const*, void*, cudaStream_t)});
  std::printf(",\n");
  printFacts("IPluginCreator", {SLOT(IPluginCreator, getTensorRTVersion), SLOT(IPluginCreator, getPluginName),
                                SLOT(IPluginCreator, getPluginVersion), SLOT(IPluginCreator, getFieldNames),
                                SLOT(IPluginCreator, createPlugin), SLOT(IPluginCreator, deserializePlugin),
                                SLOT(IPluginCreator, setPluginNamespace), SLOT(IPluginCreator, getPluginNamespace)});
  std::printf(",\n");
  printFacts("VDimensionExpr", {SLOT(apiv::VDimensionExpr, isConstant), SLOT(apiv::VDimensionExpr, getConstantValue)});
  std::printf(",\n");
  printFacts("VExprBuilder", {SLOT(apiv::VExprBuilder, constant)});
  std::printf("\n  },\n");
}

// What a plugin says that it is: the class in the upper byte, the version of the headers in the others.
void printVersions() {
  PluginProbe plugin;
  std::printf("  \"versions\": {\"plugin class\": %d, \"creator\": %d}\n",
              static_cast<const trt::IPluginV2&>(plugin).getTensorRTVersion() >> 24,
              CreatorProbe().getTensorRTVersion() / 100);
}

#if defined(VORTA_USE_TENSORRT8_HEADERS)
using Logger = trt::ILogger;
using LoggerFinder = trt::ILoggerFinder;
using Severity = trt::ILogger::Severity;
#else
using Logger = vorta::plugin::plain::ILogger;
using LoggerFinder = vorta::plugin::plain::ILoggerFinder;
using vorta::plugin::Severity;
#endif

void printLogger() {
  std::printf("  \"logger\": {\n");
  printFacts("plain", {Fact{"log", slotOf(&Logger::log)}, Fact{"findLogger", slotOf(&LoggerFinder::findLogger)},
                       Fact{"kINTERNAL_ERROR", static_cast<long long>(Severity::kINTERNAL_ERROR)},
                       Fact{"kERROR", static_cast<long long>(Severity::kERROR)},
                       Fact{"kWARNING", static_cast<long long>(Severity::kWARNING)},
                       Fact{"kINFO", static_cast<long long>(Severity::kINFO)},
                       Fact{"kVERBOSE", static_cast<long long>(Severity::kVERBOSE)}});
  std::printf("\n  },\n");
}

}  // namespace

int main() {
  std::printf("{\n");
  printEnums();
  printLayouts();
  printSlots();
  printLogger();
  printVersions();
  std::printf("}\n");
  return 0;
}
