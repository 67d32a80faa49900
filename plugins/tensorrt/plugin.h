// SPDX-License-Identifier: Apache-2.0
//
// A layer of any operator as TensorRT sees it. It validates, sizes the workspace and launches; what that means for an
// operator stands in its table (operator.h), and the computing lives behind the C API.
#ifndef VORTA_TENSORRT_PLUGIN_H_
#define VORTA_TENSORRT_PLUGIN_H_

#include <string>

#include "operator.h"
#include "tensorrt_api.h"

namespace vorta::plugin {

class Plugin final : public trt::IPluginV3,
                     public trt::IPluginV3OneCore,
                     public trt::IPluginV3OneBuild,
                     public trt::IPluginV3OneRuntime {
 public:
  Plugin(Record record, Purpose purpose);

  // IPluginV3
  trt::IPluginCapability* getCapabilityInterface(trt::PluginCapabilityType type) noexcept override;
  trt::IPluginV3* clone() noexcept override;

  // IPluginV3OneCore
  const trt::AsciiChar* getPluginName() const noexcept override;
  const trt::AsciiChar* getPluginVersion() const noexcept override;
  const trt::AsciiChar* getPluginNamespace() const noexcept override;

  // IPluginV3OneBuild
  int32_t configurePlugin(const trt::DynamicPluginTensorDesc* inputs, int32_t inputCount,
                          const trt::DynamicPluginTensorDesc* outputs, int32_t outputCount) noexcept override;
  int32_t getOutputDataTypes(trt::DataType* outputTypes, int32_t outputCount, const trt::DataType* inputTypes,
                             int32_t inputCount) const noexcept override;
  int32_t getOutputShapes(const trt::DimsExprs* inputs, int32_t inputCount, const trt::DimsExprs* shapeInputs,
                          int32_t shapeInputCount, trt::DimsExprs* outputs, int32_t outputCount,
                          trt::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, const trt::DynamicPluginTensorDesc* tensors, int32_t inputCount,
                                 int32_t outputCount) noexcept override;
  int32_t getNbOutputs() const noexcept override;
  size_t getWorkspaceSize(const trt::DynamicPluginTensorDesc* inputs, int32_t inputCount,
                          const trt::DynamicPluginTensorDesc* outputs, int32_t outputCount) const noexcept override;
  const char* getTimingCacheID() noexcept override;
  const char* getMetadataString() noexcept override;

  // IPluginV3OneRuntime
  int32_t onShapeChange(const trt::PluginTensorDesc* inputs, int32_t inputCount, const trt::PluginTensorDesc* outputs,
                        int32_t outputCount) noexcept override;
  int32_t enqueue(const trt::PluginTensorDesc* inputDescs, const trt::PluginTensorDesc* outputDescs,
                  const void* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override;
  trt::IPluginV3* attachToContext(trt::IPluginResourceContext* context) noexcept override;
  const trt::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  const Operator& op() const { return record_.op(); }

  Record record_;
  Purpose purpose_;
  SerializedFields fields_;
  std::string metadata_;
  std::string timingCacheId_;
};

}  // namespace vorta::plugin

#endif  // VORTA_TENSORRT_PLUGIN_H_
