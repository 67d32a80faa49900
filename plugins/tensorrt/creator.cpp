// SPDX-License-Identifier: Apache-2.0
#include "creator.h"

#include <string>

#include "logger.h"
#include "plugin.h"

namespace vorta::plugin {

Creator::Creator(const Operator& op) : operator_(op), fields_(announcedFields(op.fields)) {
  collection_.nbFields = static_cast<int32_t>(fields_.size());
  collection_.fields = fields_.data();
}

trt::IPluginV3* Creator::createPlugin(const trt::AsciiChar* name, const trt::PluginFieldCollection* fields,
                                      trt::TensorRTPhase phase) noexcept {
  return guarded<trt::IPluginV3*>(operator_.fields.name, "createPlugin", nullptr, [&] {
    try {
      const Purpose purpose = phase == trt::TensorRTPhase::kBUILD ? Purpose::kBuild : Purpose::kRun;
      return new Plugin(recordFromFields(operator_, fields), purpose);
    } catch (const PluginError& error) {
      const std::string layer = name == nullptr || *name == '\0' ? "" : std::string("layer ") + name + ": ";
      throw PluginError(layer + error.what());
    }
  });
}

const trt::PluginFieldCollection* Creator::getFieldNames() noexcept { return &collection_; }
const trt::AsciiChar* Creator::getPluginName() const noexcept { return operator_.fields.name; }
const trt::AsciiChar* Creator::getPluginVersion() const noexcept { return operator_.fields.version; }
const trt::AsciiChar* Creator::getPluginNamespace() const noexcept { return kOperatorNamespace; }

}  // namespace vorta::plugin
