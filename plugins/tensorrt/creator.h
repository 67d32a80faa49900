// SPDX-License-Identifier: Apache-2.0
//
// Makes the plugins of an operator from fields, for a network under construction and out of a serialized engine.
#ifndef VORTA_TENSORRT_CREATOR_H_
#define VORTA_TENSORRT_CREATOR_H_

#include <vector>

#include "operator.h"

namespace vorta::plugin {

class Creator final : public trt::IPluginCreatorV3One {
 public:
  explicit Creator(const Operator& op);

  // Null, with a message in TensorRT's logger, if the fields break a rule.
  trt::IPluginV3* createPlugin(const trt::AsciiChar* name, const trt::PluginFieldCollection* fields,
                               trt::TensorRTPhase phase) noexcept override;
  const trt::PluginFieldCollection* getFieldNames() noexcept override;
  const trt::AsciiChar* getPluginName() const noexcept override;
  const trt::AsciiChar* getPluginVersion() const noexcept override;
  const trt::AsciiChar* getPluginNamespace() const noexcept override;

 private:
  const Operator& operator_;
  std::vector<trt::PluginField> fields_;
  trt::PluginFieldCollection collection_;
};

}  // namespace vorta::plugin

#endif  // VORTA_TENSORRT_CREATOR_H_
