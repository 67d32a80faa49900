// SPDX-License-Identifier: Apache-2.0
#include "plugin_v2.h"

#include <utility>
#include <vector>

#include "layer.h"
#include "logger.h"
#include "serialized.h"
#include "shapes.h"

namespace vorta::plugin {
namespace {

constexpr int32_t kSuccess = 0;
constexpr int32_t kFailure = -1;

// A data type has one value in every version of TensorRT that has it.
trt::DataType widened(trt8::DataType type) { return static_cast<trt::DataType>(static_cast<int32_t>(type)); }

trt::Dims widened(const trt8::Dims& narrow) {
  trt::Dims dims{narrow.nbDims, {}};
  for (int32_t axis = 0; axis < dims.nbDims && axis < trt8::Dims::MAX_DIMS; ++axis) dims.d[axis] = narrow.d[axis];
  return dims;
}

// Shapes of `tensors`, each of which is reached through `dimsOf`.
template <typename Tensor, typename DimsOf>
std::vector<trt::Dims> shapesOf(const Tensor* tensors, int32_t count, DimsOf dimsOf) {
  std::vector<trt::Dims> shapes;
  for (int32_t i = 0; i < count; ++i) shapes.push_back(widened(dimsOf(tensors[i])));
  return shapes;
}

// Extents that are constants; the others are not known yet.
trt8::Dims constantExtents(const trt8::DimsExprs& tensor) {
  trt8::Dims dims{tensor.nbDims, {}};
  for (int32_t axis = 0; axis < dims.nbDims; ++axis) {
    const trt8::IDimensionExpr* extent = tensor.d[axis];
    dims.d[axis] =
        extent != nullptr && extent->isConstant() ? extent->getConstantValue() : static_cast<int32_t>(kUnknown);
  }
  return dims;
}

}  // namespace

RoutedAttentionPluginV2::RoutedAttentionPluginV2(const Attributes& attributes, std::string pluginNamespace)
    : attributes_(attributes), namespace_(std::move(pluginNamespace)) {}

const trt8::AsciiChar* RoutedAttentionPluginV2::getPluginType() const noexcept { return kRoutedAttention.name; }
const trt8::AsciiChar* RoutedAttentionPluginV2::getPluginVersion() const noexcept { return kRoutedAttention.version; }
int32_t RoutedAttentionPluginV2::getNbOutputs() const noexcept { return kOutputCount; }
size_t RoutedAttentionPluginV2::getSerializationSize() const noexcept { return kSerializedBytes; }
void RoutedAttentionPluginV2::serialize(void* buffer) const noexcept { writeAttributes(attributes_, buffer); }
void RoutedAttentionPluginV2::destroy() noexcept { delete this; }
const trt8::AsciiChar* RoutedAttentionPluginV2::getPluginNamespace() const noexcept { return namespace_.c_str(); }

void RoutedAttentionPluginV2::setPluginNamespace(const trt8::AsciiChar* pluginNamespace) noexcept {
  guarded("setPluginNamespace", kFailure, [&] {
    namespace_ = pluginNamespace == nullptr ? "" : pluginNamespace;
    return kSuccess;
  });
}

trt8::IPluginV2DynamicExt* RoutedAttentionPluginV2::clone() const noexcept {
  return guarded<trt8::IPluginV2DynamicExt*>("clone", nullptr, [&] {
    auto* copy = new RoutedAttentionPluginV2(attributes_, namespace_);
    copy->shapesFit_ = shapesFit_;
    return copy;
  });
}

// TensorRT 8 tells float32 for every kind of float here; supportsFormatCombination() settles which it is.
trt8::DataType RoutedAttentionPluginV2::getOutputDataType(int32_t /*index*/, const trt8::DataType* inputTypes,
                                                          int32_t /*inputCount*/) const noexcept {
  return inputTypes[kQuery];
}

trt8::DimsExprs RoutedAttentionPluginV2::getOutputDimensions(int32_t /*output*/, const trt8::DimsExprs* inputs,
                                                             int32_t inputCount,
                                                             trt8::IExprBuilder& /*builder*/) noexcept {
  return guarded("getOutputDimensions", trt8::DimsExprs{-1, {}}, [&] {
    checkCounts(attributes_, inputCount, kOutputCount);
    checkedProblemOf(attributes_, trt::DataType::kHALF, shapesOf(inputs, inputCount, constantExtents));
    return inputs[kQuery];
  });
}

bool RoutedAttentionPluginV2::supportsFormatCombination(int32_t position, const trt8::PluginTensorDesc* tensors,
                                                        int32_t inputCount, int32_t outputCount) noexcept {
  if (inputCount != inputCountOf(attributes_) || outputCount != kOutputCount || position < 0 ||
      position >= inputCount + outputCount || tensors[position].format != trt8::TensorFormat::kLINEAR) {
    return false;
  }
  const bool isInteger = position >= kRoutes && position < inputCount;
  return tensors[position].type == (isInteger ? trt8::DataType::kINT32 : trt8::DataType::kHALF);
}

void RoutedAttentionPluginV2::configurePlugin(const trt8::DynamicPluginTensorDesc* inputs, int32_t inputCount,
                                              const trt8::DynamicPluginTensorDesc* /*outputs*/,
                                              int32_t outputCount) noexcept {
  shapesFit_ = guarded("configurePlugin", false, [&] {
    checkCounts(attributes_, inputCount, outputCount);
    const trt::DataType type = widened(inputs[kQuery].desc.type);
    const auto given = [](const trt8::DynamicPluginTensorDesc& tensor) { return tensor.desc.dims; };
    const auto largest = [](const trt8::DynamicPluginTensorDesc& tensor) { return tensor.max; };
    const std::vector<trt::Dims> shapes = shapesOf(inputs, inputCount, given);
    checkedProblemOf(attributes_, type, shapes);
    // The batch is open while an engine is built. When it runs, shapes are final and nothing is said of the bounds.
    if (shapes[kQuery].d[0] == kUnknown) checkedProblemOf(attributes_, type, shapesOf(inputs, inputCount, largest));
    return true;
  });
}

size_t RoutedAttentionPluginV2::getWorkspaceSize(const trt8::PluginTensorDesc* inputs, int32_t inputCount,
                                                 const trt8::PluginTensorDesc* /*outputs*/,
                                                 int32_t outputCount) const noexcept {
  return guarded<size_t>("getWorkspaceSize", 0, [&] {
    checkCounts(attributes_, inputCount, outputCount);
    const auto given = [](const trt8::PluginTensorDesc& tensor) { return tensor.dims; };
    return workspaceBytes(attributes_, widened(inputs[kQuery].type), shapesOf(inputs, inputCount, given));
  });
}

int32_t RoutedAttentionPluginV2::enqueue(const trt8::PluginTensorDesc* inputDescs,
                                         const trt8::PluginTensorDesc* /*outputDescs*/, const void* const* inputs,
                                         void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
  if (!shapesFit_) return kFailure;  // configurePlugin() has said why
  return guarded("enqueue", kFailure, [&] {
    const trt8::PluginTensorDesc& query = inputDescs[kQuery];
    launch(attributes_, widened(query.type), widened(query.dims), inputs, outputs, workspace, stream);
    return kSuccess;
  });
}

}  // namespace vorta::plugin
