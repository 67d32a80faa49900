// SPDX-License-Identifier: Apache-2.0
#include "serialized.h"

#include <cstring>
#include <string>

#include "logger.h"

namespace vorta::plugin {
namespace {

constexpr int32_t kMagic = 0x41527476;  // "vtRA"
constexpr int32_t kLayout = 1;          // raised when Record changes

struct Record {
  int32_t magic;
  int32_t layout;
  Int3 grid, tile, window, bucket;
  int32_t keep;
  int32_t coresetKeys;
  int32_t textTokens;
  float scale;
  int32_t attentionPrecision;
};
static_assert(sizeof(Record) == kSerializedBytes, "no padding, and the size that plugins announce");

}  // namespace

void writeAttributes(const Attributes& attributes, void* buffer) noexcept {
  const Record record{kMagic,
                      kLayout,
                      attributes.grid,
                      attributes.tile,
                      attributes.window,
                      attributes.bucket,
                      attributes.keep,
                      static_cast<int32_t>(attributes.coresetKeys),
                      attributes.textTokens,
                      attributes.scale,
                      static_cast<int32_t>(attributes.attentionPrecision)};
  std::memcpy(buffer, &record, sizeof(record));
}

Attributes readAttributes(const void* data, size_t bytes) {
  Record record{};
  if (data != nullptr && bytes == sizeof(record)) std::memcpy(&record, data, sizeof(record));
  if (record.magic != kMagic || record.layout != kLayout) {
    throw PluginError("serialized plugin of " + std::to_string(bytes) + " bytes: must be " +
                      std::to_string(sizeof(record)) +
                      " bytes that this version of the plugin wrote; build the engine "
                      "again");
  }
  Attributes attributes;
  attributes.grid = record.grid;
  attributes.tile = record.tile;
  attributes.window = record.window;
  attributes.bucket = record.bucket;
  attributes.keep = record.keep;
  attributes.coresetKeys = static_cast<vorta_coreset_keys>(record.coresetKeys);
  attributes.textTokens = record.textTokens;
  attributes.scale = record.scale;
  attributes.attentionPrecision = static_cast<vorta_attention_precision>(record.attentionPrecision);
  return attributesFromFields(SerializedFields(attributes).collection());  // the rules of every other way in
}

}  // namespace vorta::plugin
