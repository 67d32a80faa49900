// SPDX-License-Identifier: Apache-2.0
//
// A layer of any operator as TensorRT 8.6 sees it: an IPluginV2DynamicExt over the table (../tensorrt/operator.h) that
// the V3 plugin uses. float16 only, for TensorRT 8.6 has no bfloat16.
#ifndef VORTA_TENSORRT8_PLUGIN_V2_H_
#define VORTA_TENSORRT8_PLUGIN_V2_H_

#include <string>

#include "operator.h"
#include "tensorrt8_api.h"

namespace vorta::plugin {

class PluginV2 final : public trt8::IPluginV2DynamicExt {
 public:
  PluginV2(Record record, std::string pluginNamespace, Purpose purpose);

  // IPluginV2
  const trt8::AsciiChar* getPluginType() const noexcept override;
  const trt8::AsciiChar* getPluginVersion() const noexcept override;
  int32_t getNbOutputs() const noexcept override;
  int32_t initialize() noexcept override { return 0; }
  void terminate() noexcept override {}
  size_t getSerializationSize() const noexcept override;
  void serialize(void* buffer) const noexcept override;
  void destroy() noexcept override;
  void setPluginNamespace(const trt8::AsciiChar* pluginNamespace) noexcept override;
  const trt8::AsciiChar* getPluginNamespace() const noexcept override;

  // IPluginV2Ext
  trt8::DataType getOutputDataType(int32_t index, const trt8::DataType* inputTypes,
                                   int32_t inputCount) const noexcept override;

  // IPluginV2DynamicExt
  trt8::IPluginV2DynamicExt* clone() const noexcept override;
  trt8::DimsExprs getOutputDimensions(int32_t output, const trt8::DimsExprs* inputs, int32_t inputCount,
                                      trt8::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, const trt8::PluginTensorDesc* tensors, int32_t inputCount,
                                 int32_t outputCount) noexcept override;
  // Cannot report failure: shapes that break a rule are logged, and enqueue() fails until valid ones are given.
  void configurePlugin(const trt8::DynamicPluginTensorDesc* inputs, int32_t inputCount,
                       const trt8::DynamicPluginTensorDesc* outputs, int32_t outputCount) noexcept override;
  size_t getWorkspaceSize(const trt8::PluginTensorDesc* inputs, int32_t inputCount,
                          const trt8::PluginTensorDesc* outputs, int32_t outputCount) const noexcept override;
  int32_t enqueue(const trt8::PluginTensorDesc* inputDescs, const trt8::PluginTensorDesc* outputDescs,
                  const void* const* inputs, void* const* outputs, void* workspace,
                  cudaStream_t stream) noexcept override;

 private:
  const Operator& op() const { return record_.op(); }

  Record record_;
  std::string namespace_;
  Purpose purpose_;
  bool shapesFit_ = true;  // of the last configurePlugin()
};

}  // namespace vorta::plugin

#endif  // VORTA_TENSORRT8_PLUGIN_V2_H_
