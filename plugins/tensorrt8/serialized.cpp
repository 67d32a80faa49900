// SPDX-License-Identifier: Apache-2.0
#include "serialized.h"

#include <cstring>
#include <string>

#include "logger.h"

namespace vorta::plugin {
namespace {

constexpr int32_t kLayout = 1;  // raised when a record changes

// The header before the record; field_table.h describes the record's format.
struct Header {
  char magic[4];  // "vt" and the operator's tag
  int32_t layout;
};
static_assert(sizeof(Header) == 8, "no padding");

Header headerOf(const Operator& op) { return {{'v', 't', op.tag[0], op.tag[1]}, kLayout}; }

}  // namespace

size_t serializedBytes(const Operator& op) noexcept { return sizeof(Header) + recordBytes(op.fields); }

void writeRecord(const Record& record, void* buffer) noexcept {
  const Header header = headerOf(record.op());
  std::memcpy(buffer, &header, sizeof(header));
  std::memcpy(static_cast<char*>(buffer) + sizeof(header), record.data(), record.size());
}

Record readRecord(const Operator& op, const void* data, size_t bytes) {
  const Header header = headerOf(op);
  if (data == nullptr || bytes != serializedBytes(op) || std::memcmp(data, &header, sizeof(header)) != 0) {
    throw PluginError("serialized plugin of " + std::to_string(bytes) + " bytes: must be " +
                      std::to_string(serializedBytes(op)) +
                      " bytes that this version of the plugin wrote; build the engine again");
  }
  // recordFromFields() validates them by the same rules as all other fields.
  const SerializedFields fields(op.fields, static_cast<const char*>(data) + sizeof(header));
  return recordFromFields(op, fields.collection());
}

}  // namespace vorta::plugin
