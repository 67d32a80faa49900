// SPDX-License-Identifier: Apache-2.0
#include "plugin_v2.h"

#include <utility>
#include <vector>

#include "logger.h"
#include "serialized.h"
#include "tensor_rules.h"

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

// The results of `of` for all tensors.
template <typename Tensor, typename Of>
auto listOf(const Tensor* tensors, int32_t count, Of of) {
  std::vector<decltype(of(*tensors))> list;
  for (int32_t i = 0; i < count; ++i) list.push_back(of(tensors[i]));
  return list;
}

Setting settingOf(const Record& record, const trt8::PluginTensorDesc* inputs, int32_t count) {
  return {record, listOf(inputs, count, [](const trt8::PluginTensorDesc& tensor) { return widened(tensor.dims); }),
          listOf(inputs, count, [](const trt8::PluginTensorDesc& tensor) { return widened(tensor.type); })};
}

// Extents that are constants; the others are not known yet.
trt::Dims constantExtents(const trt8::DimsExprs& tensor) {
  trt::Dims dims{tensor.nbDims, {}};
  for (int32_t axis = 0; axis < dims.nbDims; ++axis) {
    const trt8::IDimensionExpr* extent = tensor.d[axis];
    dims.d[axis] = extent != nullptr && extent->isConstant() ? extent->getConstantValue() : kUnknown;
  }
  return dims;
}

}  // namespace

PluginV2::PluginV2(Record record, std::string pluginNamespace, Purpose purpose)
    : record_(std::move(record)), namespace_(std::move(pluginNamespace)), purpose_(purpose) {}

const trt8::AsciiChar* PluginV2::getPluginType() const noexcept { return op().fields.name; }
const trt8::AsciiChar* PluginV2::getPluginVersion() const noexcept { return op().fields.version; }
int32_t PluginV2::getNbOutputs() const noexcept { return outputCountOf(record_); }
size_t PluginV2::getSerializationSize() const noexcept { return serializedBytes(record_.op()); }
void PluginV2::serialize(void* buffer) const noexcept { writeRecord(record_, buffer); }
void PluginV2::destroy() noexcept { delete this; }
const trt8::AsciiChar* PluginV2::getPluginNamespace() const noexcept { return namespace_.c_str(); }

void PluginV2::setPluginNamespace(const trt8::AsciiChar* pluginNamespace) noexcept {
  guarded(getPluginType(), "setPluginNamespace", kFailure, [&] {
    namespace_ = pluginNamespace == nullptr ? "" : pluginNamespace;
    return kSuccess;
  });
}

trt8::IPluginV2DynamicExt* PluginV2::clone() const noexcept {
  return guarded<trt8::IPluginV2DynamicExt*>(getPluginType(), "clone", nullptr, [&] {
    auto* copy = new PluginV2(record_, namespace_, purpose_);
    copy->shapesFit_ = shapesFit_;
    return copy;
  });
}

// TensorRT 8 passes float32 for every kind of float here; supportsFormatCombination() settles the type.
trt8::DataType PluginV2::getOutputDataType(int32_t index, const trt8::DataType* inputTypes,
                                           int32_t inputCount) const noexcept {
  const int32_t input = op().activationInput();
  const trt::DataType activation = input < inputCount ? widened(inputTypes[input]) : trt::DataType::kHALF;
  return static_cast<trt8::DataType>(static_cast<int32_t>(outputType(record_, index, activation)));
}

trt8::DimsExprs PluginV2::getOutputDimensions(int32_t output, const trt8::DimsExprs* inputs, int32_t inputCount,
                                              trt8::IExprBuilder& builder) noexcept {
  return guarded(getPluginType(), "getOutputDimensions", trt8::DimsExprs{-1, {}}, [&] {
    checkCounts(record_, inputCount, outputCountOf(record_));
    const Setting setting{record_, listOf(inputs, inputCount, constantExtents), {}};
    op().check(setting);
    trt8::DimsExprs dims{0, {}};
    for (const OutputAxis& axis : op().outputShape(output, setting)) {
      dims.d[dims.nbDims++] =
          axis.input < 0 ? builder.constant(static_cast<int32_t>(axis.constant)) : inputs[axis.input].d[axis.axis];
    }
    return dims;
  });
}

bool PluginV2::supportsFormatCombination(int32_t position, const trt8::PluginTensorDesc* tensors, int32_t inputCount,
                                         int32_t outputCount) noexcept {
  if (inputCount != inputCountOf(record_) || outputCount != outputCountOf(record_) || position < 0 ||
      position >= inputCount + outputCount || tensors[position].format != trt8::TensorFormat::kLINEAR ||
      tensors[position].type == trt8::DataType::kFP8) {  // 8.6 names the type and has nothing that makes it
    return false;
  }
  const auto typeOf = [](const trt8::PluginTensorDesc& tensor) { return widened(tensor.type); };
  return fits(record_, position, listOf(tensors, position + 1, typeOf), trt::DataType::kHALF);
}

void PluginV2::configurePlugin(const trt8::DynamicPluginTensorDesc* inputs, int32_t inputCount,
                               const trt8::DynamicPluginTensorDesc* /*outputs*/, int32_t outputCount) noexcept {
  shapesFit_ = guarded(getPluginType(), "configurePlugin", false, [&] {
    checkCounts(record_, inputCount, outputCount);
    const auto typeOf = [](const trt8::DynamicPluginTensorDesc& tensor) { return widened(tensor.desc.type); };
    const std::vector<trt::DataType> types = listOf(inputs, inputCount, typeOf);
    const auto given = [](const trt8::DynamicPluginTensorDesc& tensor) { return widened(tensor.desc.dims); };
    const auto largest = [&](const trt8::DynamicPluginTensorDesc& tensor) {
      return atLargest(given(tensor), widened(tensor.max));
    };
    // Extents are open while an engine is built. When it runs, shapes are final and nothing is said of the bounds.
    op().check({record_, listOf(inputs, inputCount, given), types});
    op().check({record_, listOf(inputs, inputCount, largest), types});
    return true;
  });
}

size_t PluginV2::getWorkspaceSize(const trt8::PluginTensorDesc* inputs, int32_t inputCount,
                                  const trt8::PluginTensorDesc* /*outputs*/, int32_t outputCount) const noexcept {
  return guarded<size_t>(getPluginType(), "getWorkspaceSize", 0, [&] {
    checkCounts(record_, inputCount, outputCount);
    return op().checkedWorkspaceBytes(settingOf(record_, inputs, inputCount));
  });
}

int32_t PluginV2::enqueue(const trt8::PluginTensorDesc* inputDescs, const trt8::PluginTensorDesc* /*outputDescs*/,
                          const void* const* inputs, void* const* outputs, void* workspace,
                          cudaStream_t stream) noexcept {
  if (!shapesFit_) return kFailure;  // configurePlugin() has logged why
  return guarded(getPluginType(), "enqueue", kFailure, [&] {
    op().enqueue(settingOf(record_, inputDescs, inputCountOf(record_)),
                 {inputs, outputs, workspace, stream, purpose_ == Purpose::kBuild});
    return kSuccess;
  });
}

}  // namespace vorta::plugin
