// SPDX-License-Identifier: Apache-2.0
#include "plugin.h"

#include <algorithm>
#include <vector>

#include "layer.h"
#include "logger.h"
#include "shapes.h"

namespace vorta::plugin {
namespace {

using trt::DataType;
using trt::Dims;

constexpr int32_t kSuccess = 0;
constexpr int32_t kFailure = -1;

// Which extents of a builder's description are wanted.
enum class Bound { kNetwork, kMax };

std::vector<Dims> shapesOf(const trt::DynamicPluginTensorDesc* tensors, int32_t count, Bound bound) {
  std::vector<Dims> shapes;
  for (int32_t i = 0; i < count; ++i) shapes.push_back(bound == Bound::kMax ? tensors[i].max : tensors[i].desc.dims);
  return shapes;
}

std::vector<Dims> shapesOf(const trt::PluginTensorDesc* tensors, int32_t count) {
  std::vector<Dims> shapes;
  for (int32_t i = 0; i < count; ++i) shapes.push_back(tensors[i].dims);
  return shapes;
}

std::vector<Dims> shapesOf(const trt::DimsExprs* tensors, int32_t count) {
  std::vector<Dims> shapes;
  for (int32_t i = 0; i < count; ++i) {
    Dims dims{tensors[i].nbDims, {}};
    for (int32_t axis = 0; axis < dims.nbDims; ++axis) {
      const trt::IDimensionExpr* extent = tensors[i].d[axis];
      dims.d[axis] = extent != nullptr && extent->isConstant() ? extent->getConstantValue() : kUnknown;
    }
    shapes.push_back(dims);
  }
  return shapes;
}

}  // namespace

RoutedAttentionPlugin::RoutedAttentionPlugin(const Attributes& attributes)
    : attributes_(attributes),
      fields_(kRoutedAttention, attributes.record()),
      metadata_(describeFields(kRoutedAttention, attributes.record())),
      timingCacheId_(metadata_ + " vorta_trt=" + vorta_version() + " abi=" + vorta_abi_hash()) {}

trt::IPluginCapability* RoutedAttentionPlugin::getCapabilityInterface(trt::PluginCapabilityType type) noexcept {
  switch (type) {
    case trt::PluginCapabilityType::kCORE:
      return static_cast<trt::IPluginV3OneCore*>(this);
    case trt::PluginCapabilityType::kBUILD:
      return static_cast<trt::IPluginV3OneBuild*>(this);
    case trt::PluginCapabilityType::kRUNTIME:
      return static_cast<trt::IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

trt::IPluginV3* RoutedAttentionPlugin::clone() noexcept {
  return guarded<trt::IPluginV3*>("clone", nullptr, [&] { return new RoutedAttentionPlugin(attributes_); });
}

const trt::AsciiChar* RoutedAttentionPlugin::getPluginName() const noexcept { return kRoutedAttention.name; }
const trt::AsciiChar* RoutedAttentionPlugin::getPluginVersion() const noexcept { return kRoutedAttention.version; }
const trt::AsciiChar* RoutedAttentionPlugin::getPluginNamespace() const noexcept { return kOperatorNamespace; }
int32_t RoutedAttentionPlugin::getNbOutputs() const noexcept { return kOutputCount; }
const char* RoutedAttentionPlugin::getTimingCacheID() noexcept { return timingCacheId_.c_str(); }
const char* RoutedAttentionPlugin::getMetadataString() noexcept { return metadata_.c_str(); }

int32_t RoutedAttentionPlugin::getOutputDataTypes(DataType* outputTypes, int32_t outputCount,
                                                  const DataType* inputTypes, int32_t inputCount) const noexcept {
  return guarded("getOutputDataTypes", kFailure, [&] {
    checkCounts(attributes_, inputCount, outputCount);
    checkTypes(attributes_, inputTypes);
    outputTypes[kAttention] = inputTypes[kQuery];
    return kSuccess;
  });
}

int32_t RoutedAttentionPlugin::getOutputShapes(const trt::DimsExprs* inputs, int32_t inputCount,
                                               const trt::DimsExprs* /*shapeInputs*/, int32_t /*shapeInputCount*/,
                                               trt::DimsExprs* outputs, int32_t outputCount,
                                               trt::IExprBuilder& /*builder*/) noexcept {
  return guarded("getOutputShapes", kFailure, [&] {
    checkCounts(attributes_, inputCount, outputCount);
    checkedProblemOf(attributes_, DataType::kHALF, shapesOf(inputs, inputCount));
    outputs[kAttention] = inputs[kQuery];
    return kSuccess;
  });
}

bool RoutedAttentionPlugin::supportsFormatCombination(int32_t position, const trt::DynamicPluginTensorDesc* tensors,
                                                      int32_t inputCount, int32_t outputCount) noexcept {
  if (inputCount != inputCountOf(attributes_) || outputCount != kOutputCount || position < 0 ||
      position >= inputCount + outputCount || tensors[position].desc.format != trt::TensorFormat::kLINEAR) {
    return false;
  }
  const DataType type = tensors[position].desc.type;
  if (position == kQuery) return isActivationType(type);
  if (position >= kRoutes && position < inputCount) return type == DataType::kINT32;
  return type == tensors[kQuery].desc.type;  // key, value and output
}

int32_t RoutedAttentionPlugin::configurePlugin(const trt::DynamicPluginTensorDesc* inputs, int32_t inputCount,
                                               const trt::DynamicPluginTensorDesc* /*outputs*/,
                                               int32_t outputCount) noexcept {
  return guarded("configurePlugin", kFailure, [&] {
    checkCounts(attributes_, inputCount, outputCount);
    for (Bound bound : {Bound::kNetwork, Bound::kMax}) {
      checkedProblemOf(attributes_, inputs[kQuery].desc.type, shapesOf(inputs, inputCount, bound));
    }
    return kSuccess;
  });
}

size_t RoutedAttentionPlugin::getWorkspaceSize(const trt::DynamicPluginTensorDesc* inputs, int32_t inputCount,
                                               const trt::DynamicPluginTensorDesc* /*outputs*/,
                                               int32_t outputCount) const noexcept {
  return guarded<size_t>("getWorkspaceSize", 0, [&] {
    checkCounts(attributes_, inputCount, outputCount);
    return workspaceBytes(attributes_, inputs[kQuery].desc.type, shapesOf(inputs, inputCount, Bound::kMax));
  });
}

int32_t RoutedAttentionPlugin::onShapeChange(const trt::PluginTensorDesc* inputs, int32_t inputCount,
                                             const trt::PluginTensorDesc* /*outputs*/, int32_t outputCount) noexcept {
  return guarded("onShapeChange", kFailure, [&] {
    checkCounts(attributes_, inputCount, outputCount);
    checkedProblemOf(attributes_, inputs[kQuery].type, shapesOf(inputs, inputCount));
    return kSuccess;
  });
}

int32_t RoutedAttentionPlugin::enqueue(const trt::PluginTensorDesc* inputDescs,
                                       const trt::PluginTensorDesc* /*outputDescs*/, const void* const* inputs,
                                       void* const* outputs, void* workspace, cudaStream_t stream) noexcept {
  return guarded("enqueue", kFailure, [&] {
    launch(attributes_, inputDescs[kQuery].type, inputDescs[kQuery].dims, inputs, outputs, workspace, stream);
    return kSuccess;
  });
}

trt::IPluginV3* RoutedAttentionPlugin::attachToContext(trt::IPluginResourceContext* /*context*/) noexcept {
  return clone();  // no state per context: everything lives in the workspace
}

const trt::PluginFieldCollection* RoutedAttentionPlugin::getFieldsToSerialize() noexcept {
  return fields_.collection();
}

}  // namespace vorta::plugin
