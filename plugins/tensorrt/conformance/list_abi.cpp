// SPDX-License-Identifier: Apache-2.0
//
// Prints, as JSON, what the plugin relies on in TensorRT's binary interface: enum values, struct layouts, slots of the
// virtual tables, interface versions and C++ type names. Compiled once against our declarations and once against a
// TensorRT installation's headers (-DVORTA_USE_TENSORRT_HEADERS), both have to agree; the probes below also make the
// compiler compare every signature. Assumes the Itanium C++ ABI.
#include <cstdio>
#include <type_traits>
#include <typeinfo>

#include "facts.h"
#include "logger_abi.h"
#include "tensorrt_api.h"

namespace {

namespace trt = vorta::trt;
using namespace conformance;

// --- Probes: the least classes that implement each interface; `override` makes the compiler check the signatures. ---

struct CoreProbe final : trt::IPluginV3OneCore {
  const trt::AsciiChar* getPluginName() const noexcept override { return ""; }
  const trt::AsciiChar* getPluginVersion() const noexcept override { return ""; }
  const trt::AsciiChar* getPluginNamespace() const noexcept override { return ""; }
};

struct BuildProbe final : trt::IPluginV3OneBuild {
  int32_t configurePlugin(const trt::DynamicPluginTensorDesc*, int32_t, const trt::DynamicPluginTensorDesc*,
                          int32_t) noexcept override {
    return 0;
  }
  int32_t getOutputDataTypes(trt::DataType*, int32_t, const trt::DataType*, int32_t) const noexcept override {
    return 0;
  }
  int32_t getOutputShapes(const trt::DimsExprs*, int32_t, const trt::DimsExprs*, int32_t, trt::DimsExprs*, int32_t,
                          trt::IExprBuilder&) noexcept override {
    return 0;
  }
  bool supportsFormatCombination(int32_t, const trt::DynamicPluginTensorDesc*, int32_t, int32_t) noexcept override {
    return false;
  }
  int32_t getNbOutputs() const noexcept override { return 1; }
  size_t getWorkspaceSize(const trt::DynamicPluginTensorDesc*, int32_t, const trt::DynamicPluginTensorDesc*,
                          int32_t) const noexcept override {
    return 0;
  }
  int32_t getValidTactics(int32_t*, int32_t) noexcept override { return 0; }
  int32_t getNbTactics() noexcept override { return 0; }
  const char* getTimingCacheID() noexcept override { return nullptr; }
  int32_t getFormatCombinationLimit() noexcept override { return 1; }
  const char* getMetadataString() noexcept override { return nullptr; }
};

struct RuntimeProbe final : trt::IPluginV3OneRuntime {
  int32_t setTactic(int32_t) noexcept override { return 0; }
  int32_t onShapeChange(const trt::PluginTensorDesc*, int32_t, const trt::PluginTensorDesc*,
                        int32_t) noexcept override {
    return 0;
  }
  int32_t enqueue(const trt::PluginTensorDesc*, const trt::PluginTensorDesc*, const void* const*, void* const*, void*,
                  cudaStream_t) noexcept override {
    return 0;
  }
  trt::IPluginV3* attachToContext(trt::IPluginResourceContext*) noexcept override { return nullptr; }
  const trt::PluginFieldCollection* getFieldsToSerialize() noexcept override { return nullptr; }
};

struct PluginProbe final : trt::IPluginV3 {
  trt::IPluginCapability* getCapabilityInterface(trt::PluginCapabilityType) noexcept override { return nullptr; }
  trt::IPluginV3* clone() noexcept override { return nullptr; }
};

struct CreatorProbe final : trt::IPluginCreatorV3One {
  trt::IPluginV3* createPlugin(const trt::AsciiChar*, const trt::PluginFieldCollection*,
                               trt::TensorRTPhase) noexcept override {
    return nullptr;
  }
  const trt::PluginFieldCollection* getFieldNames() noexcept override { return nullptr; }
  const trt::AsciiChar* getPluginName() const noexcept override { return ""; }
  const trt::AsciiChar* getPluginVersion() const noexcept override { return ""; }
  const trt::AsciiChar* getPluginNamespace() const noexcept override { return ""; }
};

struct ContextProbe final : trt::IPluginResourceContext {
  trt::IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
  trt::IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
};

// Reaches the protected implementation pointer of the symbolic dimension handles.
struct DimensionExprProbe : trt::IDimensionExpr {
  static constexpr auto pointer = &DimensionExprProbe::mImpl;
  using trt::IDimensionExpr::mImpl;
};
struct ExprBuilderProbe : trt::IExprBuilder {
  static constexpr auto pointer = &ExprBuilderProbe::mImpl;
  using trt::IExprBuilder::mImpl;
};

template <typename Probe>
void printInterface(const char* name, const char* end) {
  const trt::InterfaceInfo info = Probe{}.getInterfaceInfo();
  std::printf("    \"%s\": {\"kind\": \"%s\", \"major\": %d, \"minor\": %d}%s\n", name, info.kind, info.major,
              info.minor, end);
}

void printEnums() {
  std::printf("  \"enums\": {\n");
  printFacts("DataType", {VALUE(DataType, kFLOAT), VALUE(DataType, kHALF), VALUE(DataType, kINT8),
                          VALUE(DataType, kINT32), VALUE(DataType, kBOOL), VALUE(DataType, kUINT8),
                          VALUE(DataType, kFP8), VALUE(DataType, kBF16), VALUE(DataType, kINT64)});
  std::printf(",\n");
  printFacts("TensorFormat", {VALUE(TensorFormat, kLINEAR), VALUE(TensorFormat, kHWC8)});
  std::printf(",\n");
  printFacts("PluginFieldType",
             {VALUE(PluginFieldType, kFLOAT16), VALUE(PluginFieldType, kFLOAT32), VALUE(PluginFieldType, kFLOAT64),
              VALUE(PluginFieldType, kINT8), VALUE(PluginFieldType, kINT16), VALUE(PluginFieldType, kINT32),
              VALUE(PluginFieldType, kCHAR), VALUE(PluginFieldType, kDIMS), VALUE(PluginFieldType, kUNKNOWN),
              VALUE(PluginFieldType, kBF16), VALUE(PluginFieldType, kINT64)});
  std::printf(",\n");
  printFacts("TensorRTPhase", {VALUE(TensorRTPhase, kBUILD), VALUE(TensorRTPhase, kRUNTIME)});
  std::printf(",\n");
  printFacts("PluginCapabilityType", {VALUE(PluginCapabilityType, kCORE), VALUE(PluginCapabilityType, kBUILD),
                                      VALUE(PluginCapabilityType, kRUNTIME)});
  std::printf(",\n");
  printFacts("APILanguage", {VALUE(APILanguage, kCPP), VALUE(APILanguage, kPYTHON)});
  std::printf(",\n");
  printFacts(
      "DimensionOperation",
      {VALUE(DimensionOperation, kSUM), VALUE(DimensionOperation, kPROD), VALUE(DimensionOperation, kMAX),
       VALUE(DimensionOperation, kMIN), VALUE(DimensionOperation, kSUB), VALUE(DimensionOperation, kEQUAL),
       VALUE(DimensionOperation, kLESS), VALUE(DimensionOperation, kFLOOR_DIV), VALUE(DimensionOperation, kCEIL_DIV)});
  std::printf("\n  },\n");
}

void printLayouts() {
  std::printf("  \"layouts\": {\n");
  printFacts("Dims64",
             {SIZES(Dims64), Fact{"MAX_DIMS", trt::Dims64::MAX_DIMS}, FIELD(Dims64, nbDims), FIELD(Dims64, d)});
  std::printf(",\n");
  printFacts("PluginTensorDesc", {SIZES(PluginTensorDesc), FIELD(PluginTensorDesc, dims), FIELD(PluginTensorDesc, type),
                                  FIELD(PluginTensorDesc, format), FIELD(PluginTensorDesc, scale)});
  std::printf(",\n");
  printFacts("DynamicPluginTensorDesc",
             {SIZES(DynamicPluginTensorDesc), FIELD(DynamicPluginTensorDesc, desc), FIELD(DynamicPluginTensorDesc, min),
              FIELD(DynamicPluginTensorDesc, max), FIELD(DynamicPluginTensorDesc, opt)});
  std::printf(",\n");
  printFacts("PluginField", {SIZES(PluginField), FIELD(PluginField, name), FIELD(PluginField, data),
                             FIELD(PluginField, type), FIELD(PluginField, length)});
  std::printf(",\n");
  printFacts("PluginFieldCollection", {SIZES(PluginFieldCollection), FIELD(PluginFieldCollection, nbFields),
                                       FIELD(PluginFieldCollection, fields)});
  std::printf(",\n");
  printFacts("InterfaceInfo", {SIZES(InterfaceInfo), FIELD(InterfaceInfo, kind), FIELD(InterfaceInfo, major),
                               FIELD(InterfaceInfo, minor)});
  std::printf(",\n");
  printFacts("DimsExprs", {SIZES(DimsExprs), FIELD(DimsExprs, nbDims), FIELD(DimsExprs, d)});
  std::printf(",\n");
  printFacts("IDimensionExpr", {SIZES(IDimensionExpr), Fact{"mImpl", offsetOf(DimensionExprProbe::pointer)}});
  std::printf(",\n");
  printFacts("IExprBuilder", {SIZES(IExprBuilder), Fact{"mImpl", offsetOf(ExprBuilderProbe::pointer)}});
  std::printf(",\n");
  printFacts("IPluginV3OneBuild",
             {SIZES(IPluginV3OneBuild), VALUE(IPluginV3OneBuild, kDEFAULT_FORMAT_COMBINATION_LIMIT)});
  std::printf("\n  },\n");
}

void printSlots() {
  std::printf("  \"slots\": {\n");
  printFacts("IVersionedInterface",
             {SLOT(IVersionedInterface, getAPILanguage), SLOT(IVersionedInterface, getInterfaceInfo)});
  std::printf(",\n");
  printFacts("IPluginV3",
             {SLOT(IPluginV3, getInterfaceInfo), SLOT(IPluginV3, getCapabilityInterface), SLOT(IPluginV3, clone)});
  std::printf(",\n");
  printFacts("IPluginResourceContext",
             {SLOT(IPluginResourceContext, getGpuAllocator), SLOT(IPluginResourceContext, getErrorRecorder)});
  std::printf(",\n");
  printFacts("IPluginV3OneCore",
             {SLOT(IPluginV3OneCore, getInterfaceInfo), SLOT(IPluginV3OneCore, getPluginName),
              SLOT(IPluginV3OneCore, getPluginVersion), SLOT(IPluginV3OneCore, getPluginNamespace)});
  std::printf(",\n");
  printFacts("IPluginV3OneBuild",
             {SLOT(IPluginV3OneBuild, getInterfaceInfo), SLOT(IPluginV3OneBuild, configurePlugin),
              SLOT(IPluginV3OneBuild, getOutputDataTypes), SLOT(IPluginV3OneBuild, getOutputShapes),
              SLOT(IPluginV3OneBuild, supportsFormatCombination), SLOT(IPluginV3OneBuild, getNbOutputs),
              SLOT(IPluginV3OneBuild, getWorkspaceSize), SLOT(IPluginV3OneBuild, getValidTactics),
              SLOT(IPluginV3OneBuild, getNbTactics), SLOT(IPluginV3OneBuild, getTimingCacheID),
              SLOT(IPluginV3OneBuild, getFormatCombinationLimit), SLOT(IPluginV3OneBuild, getMetadataString)});
  std::printf(",\n");
  printFacts("IPluginV3OneRuntime",
             {SLOT(IPluginV3OneRuntime, getInterfaceInfo), SLOT(IPluginV3OneRuntime, setTactic),
              SLOT(IPluginV3OneRuntime, onShapeChange), SLOT(IPluginV3OneRuntime, enqueue),
              SLOT(IPluginV3OneRuntime, attachToContext), SLOT(IPluginV3OneRuntime, getFieldsToSerialize)});
  std::printf(",\n");
  printFacts("IPluginCreatorV3One",
             {SLOT(IPluginCreatorV3One, getInterfaceInfo), SLOT(IPluginCreatorV3One, createPlugin),
              SLOT(IPluginCreatorV3One, getFieldNames), SLOT(IPluginCreatorV3One, getPluginName),
              SLOT(IPluginCreatorV3One, getPluginVersion), SLOT(IPluginCreatorV3One, getPluginNamespace)});
  std::printf(",\n");
  printFacts("VDimensionExpr", {SLOT(apiv::VDimensionExpr, isConstant), SLOT(apiv::VDimensionExpr, getConstantValue),
                                SLOT(apiv::VDimensionExpr, isSizeTensor)});
  std::printf(",\n");
  printFacts("VExprBuilder", {SLOT(apiv::VExprBuilder, constant), SLOT(apiv::VExprBuilder, operation),
                              SLOT(apiv::VExprBuilder, declareSizeTensor)});
  std::printf("\n  },\n");
}

void printInterfaces() {
  std::printf("  \"interfaces\": {\n");
  printInterface<PluginProbe>("IPluginV3", ",");
  printInterface<CoreProbe>("IPluginV3OneCore", ",");
  printInterface<BuildProbe>("IPluginV3OneBuild", ",");
  printInterface<RuntimeProbe>("IPluginV3OneRuntime", ",");
  printInterface<CreatorProbe>("IPluginCreatorV3One", "");
  std::printf("  },\n");
}

// The logger's layout changed between TensorRT 10 and 11. We declare both; an installation's headers have one of them.
template <typename Logger, typename Finder, typename SeverityEnum>
void printLogger(const char* layout, const char* end) {
  printFacts(layout, {Fact{"log", slotOf(&Logger::log)}, Fact{"findLogger", slotOf(&Finder::findLogger)},
                      Fact{"kINTERNAL_ERROR", static_cast<long long>(SeverityEnum::kINTERNAL_ERROR)},
                      Fact{"kERROR", static_cast<long long>(SeverityEnum::kERROR)},
                      Fact{"kWARNING", static_cast<long long>(SeverityEnum::kWARNING)},
                      Fact{"kINFO", static_cast<long long>(SeverityEnum::kINFO)},
                      Fact{"kVERBOSE", static_cast<long long>(SeverityEnum::kVERBOSE)}});
  std::printf("%s\n", end);
}

void printLoggers() {
  std::printf("  \"loggers\": {\n");
#if defined(VORTA_USE_TENSORRT_HEADERS)
  constexpr bool isVersioned = std::is_base_of_v<trt::IVersionedInterface, trt::ILogger>;
  printLogger<trt::ILogger, trt::ILoggerFinder, trt::ILogger::Severity>(isVersioned ? "versioned" : "plain", "");
#else
  using vorta::plugin::Severity;
  printLogger<vorta::plugin::plain::ILogger, vorta::plugin::plain::ILoggerFinder, Severity>("plain", ",");
  printLogger<vorta::plugin::versioned::ILogger, vorta::plugin::versioned::ILoggerFinder, Severity>("versioned", "");
#endif
  std::printf("  },\n");
}

void printTypeNames() {
  const ContextProbe context;  // instantiates the destructor, too
  static_cast<void>(context);
  std::printf("  \"type_names\": [\n");
  for (const std::type_info* type :
       {&typeid(trt::IPluginV3), &typeid(trt::IPluginCapability), &typeid(trt::IPluginV3OneCore),
        &typeid(trt::IPluginV3OneBuild), &typeid(trt::IPluginV3OneRuntime), &typeid(trt::IPluginCreatorInterface),
        &typeid(trt::IPluginResourceContext)}) {
    std::printf("    \"%s\",\n", type->name());
  }
  std::printf("    \"%s\"\n  ]\n", typeid(trt::IPluginCreatorV3One).name());
}

}  // namespace

int main() {
  std::printf("{\n");
  printEnums();
  printLayouts();
  printSlots();
  printInterfaces();
  printLoggers();
  printTypeNames();
  std::printf("}\n");
  return 0;
}
