// SPDX-License-Identifier: Apache-2.0
#include "field_table.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

#include "logger.h"

namespace vorta::plugin {
namespace {

using trt::PluginField;
using trt::PluginFieldType;

constexpr int32_t kMaxShownItems = 8;

const char* typeName(PluginFieldType type) {
  switch (type) {
    case PluginFieldType::kFLOAT16:
      return "float16";
    case PluginFieldType::kFLOAT32:
      return "float32";
    case PluginFieldType::kFLOAT64:
      return "float64";
    case PluginFieldType::kINT8:
      return "int8";
    case PluginFieldType::kINT16:
      return "int16";
    case PluginFieldType::kINT32:
      return "int32";
    case PluginFieldType::kCHAR:
      return "string";
    case PluginFieldType::kDIMS:
      return "dims";
    case PluginFieldType::kBF16:
      return "bfloat16";
    case PluginFieldType::kINT64:
      return "int64";
    default:
      return "an unknown type";
  }
}

// A string field with or without the terminating zeros that some parsers count in.
std::string textOf(const PluginField& field) {
  std::string text(static_cast<const char*>(field.data), static_cast<size_t>(field.length));
  return text.substr(0, text.find('\0'));
}

template <typename Item>
std::string listOf(const PluginField& field) {
  std::string text = "(";
  for (int32_t i = 0; i < field.length && i < kMaxShownItems; ++i) {
    Item item;
    std::memcpy(&item, static_cast<const char*>(field.data) + static_cast<size_t>(i) * sizeof(Item), sizeof(Item));
    text += (i == 0 ? "" : ", ") + std::to_string(item);
  }
  return text + (field.length > kMaxShownItems ? ", ...)" : ")");
}

// "field grid = (20, 45) [int32 x 2]": the start of every message.
std::string given(const PluginField& field) {
  std::string value;
  if (field.data != nullptr && field.length > 0) {
    switch (field.type) {
      case PluginFieldType::kINT32:
        value = " = " + listOf<int32_t>(field);
        break;
      case PluginFieldType::kINT64:
        value = " = " + listOf<int64_t>(field);
        break;
      case PluginFieldType::kFLOAT32:
        value = " = " + listOf<float>(field);
        break;
      case PluginFieldType::kFLOAT64:
        value = " = " + listOf<double>(field);
        break;
      case PluginFieldType::kCHAR:
        value = " = \"" + textOf(field) + "\"";
        break;
      default:
        break;
    }
  }
  return std::string("field ") + field.name + value + " [" + typeName(field.type) + " x " +
         std::to_string(field.length) + "]: ";
}

// Names of all fields, or of those that may be left out.
std::string namesOf(const FieldTable& table, bool optional = false) {
  std::string names;
  for (int32_t i = 0; i < table.count; ++i) {
    const FieldSpec& spec = table.fields[i];
    if (!optional || spec.presence == Presence::kOptional)
      names += (names.empty() ? "" : ", ") + std::string(spec.name);
  }
  return names;
}

const Choices& choicesOf(const FieldTable& table, const FieldSpec& spec) {
  const Choices* choices = table.choices;
  while (std::strcmp(choices->field, spec.name) != 0) ++choices;
  return *choices;
}

// The string whose number stands in a record, which may come from a damaged engine.
const char* chosen(const FieldTable& table, const FieldSpec& spec, const char* item) {
  int32_t number;
  std::memcpy(&number, item, sizeof(number));
  const Choices& choices = choicesOf(table, spec);
  if (number < 0 || number >= choices.count) {
    throw PluginError(std::string(spec.name) + " number " + std::to_string(number) + ": must be below " +
                      std::to_string(choices.count) + "; build the engine again");
  }
  return choices.names[number];
}

void requireItems(const PluginField& field, int32_t length) {
  if (field.length != length || field.data == nullptr) {
    throw PluginError(given(field) + "must hold " + (length == 1 ? "1 number" : std::to_string(length) + " numbers") +
                      "; write " + field.name + (length == 3 ? "=[a, b, c]" : "=a") + " on the node");
  }
}

// ONNX knows 64-bit integers only; parsers hand them over as int32 or int64.
void readIntegers(const PluginField& field, const FieldSpec& spec, int32_t* items) {
  if (field.type != PluginFieldType::kINT32 && field.type != PluginFieldType::kINT64) {
    throw PluginError(given(field) + "must be an integer field, int32 or int64; write " + field.name +
                      " as integers on the node");
  }
  requireItems(field, spec.length);
  for (int32_t i = 0; i < spec.length; ++i) {
    const int64_t item = field.type == PluginFieldType::kINT32 ? static_cast<const int32_t*>(field.data)[i]
                                                               : static_cast<const int64_t*>(field.data)[i];
    if (item < std::numeric_limits<int32_t>::min() || item > std::numeric_limits<int32_t>::max()) {
      throw PluginError(given(field) + "must fit in 32 bits; write the number of tokens or tiles per axis");
    }
    items[i] = static_cast<int32_t>(item);
  }
}

void readNumber(const PluginField& field, float* item) {
  if (field.type != PluginFieldType::kFLOAT32) {
    throw PluginError(given(field) + "must be a float32 field; write " + field.name + " as a float on the node");
  }
  requireItems(field, 1);
  *item = *static_cast<const float*>(field.data);
  if (!std::isfinite(*item)) {
    throw PluginError(given(field) + "must be finite; write a finite " + field.name + ", or leave it out");
  }
}

void readChoice(const PluginField& field, const FieldSpec& spec, const Choices& choices, int32_t* item) {
  std::string known;
  for (*item = 0; *item < choices.count; ++*item) {
    const std::string choice = choices.names[*item];
    if (field.type == PluginFieldType::kCHAR && field.data != nullptr && field.length > 0 && textOf(field) == choice) {
      return;
    }
    known += (known.empty() ? "\"" : " or \"") + choice + "\"";
  }
  throw PluginError(given(field) + "must be the string " + known + "; write one of them" +
                    (spec.presence == Presence::kOptional ? ", or leave it out" : ""));
}

// TensorRT's own attributes that select a plugin; parsers may pass them on.
bool isSelector(const FieldTable& table, const PluginField& field) {
  const bool isNamespace = std::strcmp(field.name, "plugin_namespace") == 0;
  if (!isNamespace && std::strcmp(field.name, "plugin_version") != 0) return false;
  const char* expected = isNamespace ? kOperatorNamespace : table.version;
  if (field.type != PluginFieldType::kCHAR || field.data == nullptr || field.length < 1 || textOf(field) != expected) {
    throw PluginError(given(field) + "must be \"" + expected + "\"; this is that plugin, correct the node's attribute");
  }
  return true;
}

const PluginField* find(const trt::PluginFieldCollection& fields, const char* name) {
  for (int32_t i = 0; i < fields.nbFields; ++i) {
    if (std::strcmp(fields.fields[i].name, name) == 0) return &fields.fields[i];
  }
  return nullptr;
}

// Throws unless every field is known, and none stands twice.
void checkNames(const FieldTable& table, const trt::PluginFieldCollection& fields) {
  for (int32_t i = 0; i < fields.nbFields; ++i) {
    const PluginField& field = fields.fields[i];
    if (field.name == nullptr) {
      throw PluginError("field " + std::to_string(i) + ": has no name; the fields are " + namesOf(table));
    }
    if (find(fields, field.name) != &field) throw PluginError(given(field) + "stands twice; keep one of the two");
    bool known = isSelector(table, field);
    for (int32_t j = 0; j < table.count; ++j) known = known || std::strcmp(table.fields[j].name, field.name) == 0;
    if (!known) {
      throw PluginError(given(field) + "is not a field of this plugin; the fields are " + namesOf(table) +
                        "; remove it");
    }
  }
}

std::string textOf(const FieldTable& table, const FieldSpec& spec, const char* item) {
  if (spec.type == PluginFieldType::kCHAR) return chosen(table, spec, item);
  if (spec.type == PluginFieldType::kFLOAT32) {
    float number;
    std::memcpy(&number, item, sizeof(number));
    char text[32];
    std::snprintf(text, sizeof(text), "%.9g", static_cast<double>(number));  // enough digits to tell any two apart
    return text;
  }
  std::string text;
  for (size_t offset = 0; offset < recordBytes(spec); offset += kItemBytes) {
    int32_t integer;
    std::memcpy(&integer, item + offset, sizeof(integer));
    text += (offset == 0 ? "" : "x") + std::to_string(integer);
  }
  return text;
}

}  // namespace

size_t recordBytes(const FieldTable& table) {
  size_t bytes = 0;
  for (int32_t i = 0; i < table.count; ++i) bytes += recordBytes(table.fields[i]);
  return bytes;
}

int32_t integerField(const FieldTable& table, const void* record, const char* name) {
  const char* item = static_cast<const char*>(record);
  const FieldSpec* field = table.fields;
  for (; std::strcmp(field->name, name) != 0; ++field) item += recordBytes(*field);
  int32_t value;
  std::memcpy(&value, item, sizeof(value));
  return value;
}

std::vector<PluginField> announcedFields(const FieldTable& table) {
  std::vector<PluginField> fields;
  for (int32_t i = 0; i < table.count; ++i) {
    fields.emplace_back(table.fields[i].name, nullptr, table.fields[i].type, table.fields[i].length);
  }
  return fields;
}

void readFields(const FieldTable& table, const trt::PluginFieldCollection* given, void* record) {
  if (given == nullptr || given->nbFields < 0 || (given->nbFields > 0 && given->fields == nullptr)) {
    throw PluginError("field collection: null or of negative length; pass the fields " + namesOf(table));
  }
  checkNames(table, *given);
  char* item = static_cast<char*>(record);
  for (int32_t i = 0; i < table.count; ++i) {
    const FieldSpec& spec = table.fields[i];
    const PluginField* field = find(*given, spec.name);
    std::memset(item, 0, recordBytes(spec));
    if (field == nullptr && spec.presence == Presence::kRequired) {
      throw PluginError(std::string("field ") + spec.name + ": is missing; every node carries " + namesOf(table) +
                        " (" + namesOf(table, true) +
                        " may be left out); export the model again, or add the attribute");
    }
    if (field != nullptr && spec.type == PluginFieldType::kCHAR) {
      readChoice(*field, spec, choicesOf(table, spec), reinterpret_cast<int32_t*>(item));
    } else if (field != nullptr && spec.type == PluginFieldType::kFLOAT32) {
      readNumber(*field, reinterpret_cast<float*>(item));
    } else if (field != nullptr) {
      readIntegers(*field, spec, reinterpret_cast<int32_t*>(item));
    }
    item += recordBytes(spec);
  }
}

std::string describeFields(const FieldTable& table, const void* record) {
  std::string text;
  const char* item = static_cast<const char*>(record);
  for (int32_t i = 0; i < table.count; ++i) {
    const FieldSpec& spec = table.fields[i];
    text += (i == 0 ? "" : " ") + std::string(spec.name) + "=" + textOf(table, spec, item);
    item += recordBytes(spec);
  }
  return text;
}

SerializedFields::SerializedFields(const FieldTable& table, const void* record) {
  record_.assign(static_cast<const char*>(record), static_cast<const char*>(record) + recordBytes(table));
  const char* item = record_.data();
  for (int32_t i = 0; i < table.count; ++i) {
    const FieldSpec& spec = table.fields[i];
    if (spec.type == PluginFieldType::kCHAR) {
      const char* text = chosen(table, spec, item);
      fields_.emplace_back(spec.name, text, spec.type, static_cast<int32_t>(std::strlen(text)));
    } else {
      fields_.emplace_back(spec.name, item, spec.type, spec.length);
    }
    item += recordBytes(spec);
  }
  collection_.nbFields = static_cast<int32_t>(fields_.size());
  collection_.fields = fields_.data();
}

}  // namespace vorta::plugin
