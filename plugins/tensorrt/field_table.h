// SPDX-License-Identifier: Apache-2.0
//
// The fields of an operator as a table, and everything that TensorRT wants of them: read, written back, described.
//
// An operator keeps the values of its fields in one record: one after another in the order of the table, in items of
// four bytes. An integer is an int32, a number a float, and a string the int32 of its place among the choices.
#ifndef VORTA_TENSORRT_FIELD_TABLE_H_
#define VORTA_TENSORRT_FIELD_TABLE_H_

#include <string>
#include <vector>

#include "field_list.h"

namespace vorta::plugin {

// The values that a string field may have.
struct Choices {
  const char* field;
  const char* const* names;
  int32_t count;
};

// An operator: its identity, and its fields in order. Its namespace is kOperatorNamespace.
struct FieldTable {
  const char* name;
  const char* version;
  const FieldSpec* fields;
  int32_t count;
  const Choices* choices;  // of the string fields
};

inline constexpr size_t kItemBytes = 4;

// Bytes that a field takes in the record.
constexpr size_t recordBytes(const FieldSpec& field) {
  return kItemBytes * static_cast<size_t>(field.length == 0 ? 1 : field.length);
}

// Bytes of the whole record.
size_t recordBytes(const FieldTable& table);

// The value of an integer field.
int32_t integerField(const FieldTable& table, const void* record, const char* name);

// The fields without values, as a creator announces them.
std::vector<trt::PluginField> announcedFields(const FieldTable& table);

// Reads and validates `given` into `record`; the fields of a network (build) and those of an engine (runtime) are the
// same. A field that is left out leaves zeros. Throws PluginError that names field, given value, rule and remedy.
void readFields(const FieldTable& table, const trt::PluginFieldCollection* given, void* record);

// "grid=20x45x80 tile=5x9x8 ...": for the timing cache and the engine inspector.
std::string describeFields(const FieldTable& table, const void* record);

// The fields that readFields() reads back. They point into this object, hence it is neither copied nor moved.
class SerializedFields {
 public:
  SerializedFields(const FieldTable& table, const void* record);
  SerializedFields(const SerializedFields&) = delete;
  SerializedFields& operator=(const SerializedFields&) = delete;

  const trt::PluginFieldCollection* collection() const { return &collection_; }

 private:
  std::vector<char> record_;
  std::vector<trt::PluginField> fields_;
  trt::PluginFieldCollection collection_;
};

}  // namespace vorta::plugin

#endif  // VORTA_TENSORRT_FIELD_TABLE_H_
