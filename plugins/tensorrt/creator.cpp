// SPDX-License-Identifier: Apache-2.0
#include "creator.h"

#include <string>

#include "fields.h"
#include "logger.h"
#include "plugin.h"

namespace vorta::plugin {

RoutedAttentionCreator::RoutedAttentionCreator() : fields_(announcedFields(kRoutedAttention)) {
  collection_.nbFields = static_cast<int32_t>(fields_.size());
  collection_.fields = fields_.data();
}

trt::IPluginV3* RoutedAttentionCreator::createPlugin(const trt::AsciiChar* name,
                                                     const trt::PluginFieldCollection* fields,
                                                     trt::TensorRTPhase /*phase*/) noexcept {
  return guarded<trt::IPluginV3*>("createPlugin", nullptr, [&] {
    try {
      return new RoutedAttentionPlugin(attributesFromFields(fields));
    } catch (const PluginError& error) {
      const std::string layer = name == nullptr || *name == '\0' ? "" : std::string("layer ") + name + ": ";
      throw PluginError(layer + error.what());
    }
  });
}

const trt::PluginFieldCollection* RoutedAttentionCreator::getFieldNames() noexcept { return &collection_; }
const trt::AsciiChar* RoutedAttentionCreator::getPluginName() const noexcept { return kRoutedAttention.name; }
const trt::AsciiChar* RoutedAttentionCreator::getPluginVersion() const noexcept { return kRoutedAttention.version; }
const trt::AsciiChar* RoutedAttentionCreator::getPluginNamespace() const noexcept { return kOperatorNamespace; }

}  // namespace vorta::plugin
