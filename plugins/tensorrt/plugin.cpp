// SPDX-License-Identifier: Apache-2.0
#include "plugin.h"

#include <initializer_list>
#include <utility>
#include <vector>

#include "logger.h"
#include "tensor_rules.h"
#include "vorta_trt/routed_attention.h"

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
  for (int32_t i = 0; i < count; ++i) {
    const Dims& dims = tensors[i].desc.dims;
    shapes.push_back(bound == Bound::kMax ? atLargest(dims, tensors[i].max) : dims);
  }
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

std::vector<DataType> typesOf(const trt::PluginTensorDesc* tensors, int32_t count) {
  std::vector<DataType> types;
  for (int32_t i = 0; i < count; ++i) types.push_back(tensors[i].type);
  return types;
}

std::vector<DataType> typesOf(const trt::DynamicPluginTensorDesc* tensors, int32_t count) {
  std::vector<DataType> types;
  for (int32_t i = 0; i < count; ++i) types.push_back(tensors[i].desc.type);
  return types;
}

}  // namespace

Plugin::Plugin(Record record, Purpose purpose)
    : record_(std::move(record)),
      purpose_(purpose),
      fields_(op().fields, record_.data()),
      metadata_(describeFields(op().fields, record_.data())),
      timingCacheId_(metadata_ + " operator=" + op().fields.name + " vorta_trt=" + vorta_version() +
                     " abi=" + vorta_abi_hash()) {}

trt::IPluginCapability* Plugin::getCapabilityInterface(trt::PluginCapabilityType type) noexcept {
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

trt::IPluginV3* Plugin::clone() noexcept {
  return guarded<trt::IPluginV3*>(getPluginName(), "clone", nullptr, [&] { return new Plugin(record_, purpose_); });
}

const trt::AsciiChar* Plugin::getPluginName() const noexcept { return op().fields.name; }
const trt::AsciiChar* Plugin::getPluginVersion() const noexcept { return op().fields.version; }
const trt::AsciiChar* Plugin::getPluginNamespace() const noexcept { return kOperatorNamespace; }
int32_t Plugin::getNbOutputs() const noexcept { return outputCountOf(record_); }
const char* Plugin::getTimingCacheID() noexcept { return timingCacheId_.c_str(); }
const char* Plugin::getMetadataString() noexcept { return metadata_.c_str(); }

int32_t Plugin::getOutputDataTypes(DataType* outputTypes, int32_t outputCount, const DataType* inputTypes,
                                   int32_t inputCount) const noexcept {
  return guarded(getPluginName(), "getOutputDataTypes", kFailure, [&] {
    checkCounts(record_, inputCount, outputCount);
    checkTypes(record_, inputTypes);
    const DataType activation = inputTypes[op().activationInput()];
    for (int32_t output = 0; output < outputCount; ++output) {
      outputTypes[output] = outputType(record_, output, activation);
    }
    return kSuccess;
  });
}

int32_t Plugin::getOutputShapes(const trt::DimsExprs* inputs, int32_t inputCount, const trt::DimsExprs* /*shapeInputs*/,
                                int32_t /*shapeInputCount*/, trt::DimsExprs* outputs, int32_t outputCount,
                                trt::IExprBuilder& builder) noexcept {
  return guarded(getPluginName(), "getOutputShapes", kFailure, [&] {
    checkCounts(record_, inputCount, outputCount);
    const Setting setting{record_, shapesOf(inputs, inputCount), {}};
    op().check(setting);
    for (int32_t output = 0; output < outputCount; ++output) {
      outputs[output].nbDims = 0;
      for (const OutputAxis& axis : op().outputShape(output, setting)) {
        outputs[output].d[outputs[output].nbDims++] =
            axis.input < 0 ? builder.constant(axis.constant) : inputs[axis.input].d[axis.axis];
      }
    }
    return kSuccess;
  });
}

bool Plugin::supportsFormatCombination(int32_t position, const trt::DynamicPluginTensorDesc* tensors,
                                       int32_t inputCount, int32_t outputCount) noexcept {
  if (inputCount != inputCountOf(record_) || outputCount != outputCountOf(record_) || position < 0 ||
      position >= inputCount + outputCount || tensors[position].desc.format != trt::TensorFormat::kLINEAR) {
    return false;
  }
  const std::vector<DataType> types = typesOf(tensors, position + 1);
  return fits(record_, position, types, activationType(record_, types));
}

int32_t Plugin::configurePlugin(const trt::DynamicPluginTensorDesc* inputs, int32_t inputCount,
                                const trt::DynamicPluginTensorDesc* /*outputs*/, int32_t outputCount) noexcept {
  return guarded(getPluginName(), "configurePlugin", kFailure, [&] {
    checkCounts(record_, inputCount, outputCount);
    for (Bound bound : {Bound::kNetwork, Bound::kMax}) {
      op().check({record_, shapesOf(inputs, inputCount, bound), typesOf(inputs, inputCount)});
    }
    return kSuccess;
  });
}

size_t Plugin::getWorkspaceSize(const trt::DynamicPluginTensorDesc* inputs, int32_t inputCount,
                                const trt::DynamicPluginTensorDesc* /*outputs*/, int32_t outputCount) const noexcept {
  return guarded<size_t>(getPluginName(), "getWorkspaceSize", 0, [&] {
    checkCounts(record_, inputCount, outputCount);
    return op().checkedWorkspaceBytes(
        {record_, shapesOf(inputs, inputCount, Bound::kMax), typesOf(inputs, inputCount)});
  });
}

int32_t Plugin::onShapeChange(const trt::PluginTensorDesc* inputs, int32_t inputCount,
                              const trt::PluginTensorDesc* /*outputs*/, int32_t outputCount) noexcept {
  return guarded(getPluginName(), "onShapeChange", kFailure, [&] {
    checkCounts(record_, inputCount, outputCount);
    op().check({record_, shapesOf(inputs, inputCount), typesOf(inputs, inputCount)});
    return kSuccess;
  });
}

int32_t Plugin::enqueue(const trt::PluginTensorDesc* inputDescs, const trt::PluginTensorDesc* /*outputDescs*/,
                        const void* const* inputs, void* const* outputs, void* workspace,
                        cudaStream_t stream) noexcept {
  return guarded(getPluginName(), "enqueue", kFailure, [&] {
    const int32_t count = inputCountOf(record_);
    op().enqueue({record_, shapesOf(inputDescs, count), typesOf(inputDescs, count)},
                 {inputs, outputs, workspace, stream, purpose_ == Purpose::kBuild});
    return kSuccess;
  });
}

trt::IPluginV3* Plugin::attachToContext(trt::IPluginResourceContext* /*context*/) noexcept {
  return clone();  // no state per context: everything lives in the workspace
}

const trt::PluginFieldCollection* Plugin::getFieldsToSerialize() noexcept { return fields_.collection(); }

}  // namespace vorta::plugin
