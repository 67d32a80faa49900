// SPDX-License-Identifier: Apache-2.0
#include "creator_v2.h"

#include <utility>
#include <vector>

#include "logger.h"
#include "plugin_v2.h"
#include "serialized.h"

namespace vorta::plugin {
namespace {

// The fields as the V3 interface spells them. Field types have one value in every version that has them.
std::vector<trt::PluginField> fieldsOf(const trt8::PluginFieldCollection& collection) {
  std::vector<trt::PluginField> fields;
  for (int32_t i = 0; i < collection.nbFields; ++i) {
    const trt8::PluginField& field = collection.fields[i];
    const auto type = static_cast<trt::PluginFieldType>(static_cast<int32_t>(field.type));
    fields.emplace_back(field.name, field.data, type, field.length);
  }
  return fields;
}

// Runs `recordOf` and makes a plugin from what it gives; messages say which layer they are about.
template <typename RecordOf>
trt8::IPluginV2* make(const Operator& op, const char* where, const trt8::AsciiChar* name,
                      const std::string& pluginNamespace, Purpose purpose, RecordOf&& recordOf) noexcept {
  return guarded<trt8::IPluginV2*>(op.fields.name, where, nullptr, [&]() -> trt8::IPluginV2* {
    try {
      return new PluginV2(std::forward<RecordOf>(recordOf)(), pluginNamespace, purpose);
    } catch (const PluginError& error) {
      const std::string layer = name == nullptr || *name == '\0' ? "" : std::string("layer ") + name + ": ";
      throw PluginError(layer + error.what());
    }
  });
}

}  // namespace

CreatorV2::CreatorV2(const Operator& op) : operator_(op) {
  for (const trt::PluginField& field : announcedFields(op.fields)) {
    const auto type = static_cast<trt8::PluginFieldType>(static_cast<int32_t>(field.type));
    fields_.emplace_back(field.name, nullptr, type, field.length);
  }
  collection_.nbFields = static_cast<int32_t>(fields_.size());
  collection_.fields = fields_.data();
}

trt8::IPluginV2* CreatorV2::createPlugin(const trt8::AsciiChar* name,
                                         const trt8::PluginFieldCollection* fields) noexcept {
  return make(operator_, "createPlugin", name, namespace_, Purpose::kBuild, [&] {
    if (fields == nullptr || (fields->nbFields > 0 && fields->fields == nullptr))
      return recordFromFields(operator_, nullptr);
    const std::vector<trt::PluginField> converted = fieldsOf(*fields);
    const trt::PluginFieldCollection collection{static_cast<int32_t>(converted.size()), converted.data()};
    return recordFromFields(operator_, &collection);
  });
}

trt8::IPluginV2* CreatorV2::deserializePlugin(const trt8::AsciiChar* name, const void* data, size_t bytes) noexcept {
  return make(operator_, "deserializePlugin", name, namespace_, Purpose::kRun,
              [&] { return readRecord(operator_, data, bytes); });
}

void CreatorV2::setPluginNamespace(const trt8::AsciiChar* pluginNamespace) noexcept {
  guarded(getPluginName(), "setPluginNamespace", 0, [&] {
    namespace_ = pluginNamespace == nullptr ? "" : pluginNamespace;
    return 0;
  });
}

const trt8::PluginFieldCollection* CreatorV2::getFieldNames() noexcept { return &collection_; }
const trt8::AsciiChar* CreatorV2::getPluginName() const noexcept { return operator_.fields.name; }
const trt8::AsciiChar* CreatorV2::getPluginVersion() const noexcept { return operator_.fields.version; }
const trt8::AsciiChar* CreatorV2::getPluginNamespace() const noexcept { return namespace_.c_str(); }

}  // namespace vorta::plugin
