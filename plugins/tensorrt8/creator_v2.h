// SPDX-License-Identifier: Apache-2.0
//
// Makes the plugins of an operator for TensorRT 8.6, from the attributes of a node and out of a serialized engine.
#ifndef VORTA_TENSORRT8_CREATOR_V2_H_
#define VORTA_TENSORRT8_CREATOR_V2_H_

#include <string>
#include <vector>

#include "operator.h"
#include "tensorrt8_api.h"

namespace vorta::plugin {

class CreatorV2 final : public trt8::IPluginCreator {
 public:
  explicit CreatorV2(const Operator& op);

  const trt8::AsciiChar* getPluginName() const noexcept override;
  const trt8::AsciiChar* getPluginVersion() const noexcept override;
  const trt8::PluginFieldCollection* getFieldNames() noexcept override;
  // Null, with a message in TensorRT's logger, if the fields break a rule.
  trt8::IPluginV2* createPlugin(const trt8::AsciiChar* name,
                                const trt8::PluginFieldCollection* fields) noexcept override;
  trt8::IPluginV2* deserializePlugin(const trt8::AsciiChar* name, const void* data, size_t bytes) noexcept override;
  void setPluginNamespace(const trt8::AsciiChar* pluginNamespace) noexcept override;
  const trt8::AsciiChar* getPluginNamespace() const noexcept override;

 private:
  const Operator& operator_;
  std::string namespace_ = kOperatorNamespace;
  std::vector<trt8::PluginField> fields_;
  trt8::PluginFieldCollection collection_;
};

}  // namespace vorta::plugin

#endif  // VORTA_TENSORRT8_CREATOR_V2_H_
