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
  char fields[kRecordBytes];  // as field_table.h has them
};
static_assert(sizeof(Record) == kSerializedBytes, "no padding, and the size that plugins announce");

}  // namespace

void writeAttributes(const Attributes& attributes, void* buffer) noexcept {
  Record record{kMagic, kLayout, {}};
  std::memcpy(record.fields, attributes.record(), kRecordBytes);
  std::memcpy(buffer, &record, sizeof(record));
}

Attributes readAttributes(const void* data, size_t bytes) {
  Record record{};
  if (data != nullptr && bytes == sizeof(record)) std::memcpy(&record, data, sizeof(record));
  if (record.magic != kMagic || record.layout != kLayout) {
    throw PluginError("serialized plugin of " + std::to_string(bytes) + " bytes: must be " +
                      std::to_string(sizeof(record)) +
                      " bytes that this version of the plugin wrote; build the engine again");
  }
  // The rules of every other way in.
  return attributesFromFields(SerializedFields(kRoutedAttention, record.fields).collection());
}

}  // namespace vorta::plugin
