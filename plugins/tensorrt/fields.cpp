// SPDX-License-Identifier: Apache-2.0
#include "fields.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

#include "logger.h"
#include "shapes.h"

namespace vorta::plugin {
namespace {

using trt::PluginField;
using trt::PluginFieldType;

constexpr char kByQuery[] = "query";
constexpr char kByKey[] = "key";
constexpr char kSame[] = "same";
constexpr char kFp8[] = "fp8";
constexpr int32_t kMaxShownItems = 8;

const char* nameOf(vorta_coreset_keys keys) { return keys == VORTA_KEYS_BY_KEY ? kByKey : kByQuery; }

const char* nameOf(vorta_attention_precision precision) { return precision == VORTA_PRECISION_FP8 ? kFp8 : kSame; }

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

std::string fieldNames() {
  std::string names;
  for (const FieldSpec& spec : kFieldList) {
    names += (names.empty() ? "" : ", ") + std::string(spec.name);
  }
  return names;
}

void requireItems(const PluginField& field, int32_t length) {
  if (field.length != length || field.data == nullptr) {
    throw PluginError(given(field) + "must hold " + (length == 1 ? "1 number" : std::to_string(length) + " numbers") +
                      "; write " + field.name + (length == 3 ? "=[a, b, c]" : "=a") + " on the node");
  }
}

// ONNX knows 64-bit integers only; parsers hand them over as int32 or int64.
template <size_t Count>
std::array<int32_t, Count> integersOf(const PluginField& field) {
  if (field.type != PluginFieldType::kINT32 && field.type != PluginFieldType::kINT64) {
    throw PluginError(given(field) + "must be an integer field, int32 or int64; write " + field.name +
                      " as integers on the node");
  }
  requireItems(field, Count);
  std::array<int32_t, Count> items{};
  for (size_t i = 0; i < Count; ++i) {
    int64_t item = 0;
    if (field.type == PluginFieldType::kINT32) {
      item = static_cast<const int32_t*>(field.data)[i];
    } else {
      item = static_cast<const int64_t*>(field.data)[i];
    }
    if (item < std::numeric_limits<int32_t>::min() || item > std::numeric_limits<int32_t>::max()) {
      throw PluginError(given(field) + "must fit in 32 bits; write the number of tokens or tiles per axis");
    }
    items[i] = static_cast<int32_t>(item);
  }
  return items;
}

bool isText(const PluginField& field, const char* text) {
  return field.type == PluginFieldType::kCHAR && field.data != nullptr && field.length > 0 && textOf(field) == text;
}

vorta_coreset_keys coresetKeysOf(const PluginField& field) {
  if (isText(field, kByQuery)) return VORTA_KEYS_BY_QUERY;
  if (isText(field, kByKey)) return VORTA_KEYS_BY_KEY;
  throw PluginError(given(field) +
                    "must be the string \"query\" (Wan) or \"key\" (HunyuanVideo); write one of the two");
}

vorta_attention_precision attentionPrecisionOf(const PluginField& field) {
  if (isText(field, kSame)) return VORTA_PRECISION_SAME;
  if (isText(field, kFp8)) return VORTA_PRECISION_FP8;
  throw PluginError(given(field) +
                    "must be the string \"same\" (as the inputs) or \"fp8\"; write one of the two, or leave it out");
}

float scaleOf(const PluginField& field) {
  if (field.type != PluginFieldType::kFLOAT32) {
    throw PluginError(given(field) + "must be a float32 field; write scale as a float on the node");
  }
  requireItems(field, 1);
  const float scale = *static_cast<const float*>(field.data);
  if (!std::isfinite(scale)) {
    throw PluginError(given(field) + "must be finite; leave scale out for 1/sqrt(head dimension)");
  }
  return scale;
}

// TensorRT's own attributes that select this plugin; parsers may pass them on.
bool isSelector(const PluginField& field) {
  const bool isNamespace = std::strcmp(field.name, "plugin_namespace") == 0;
  if (!isNamespace && std::strcmp(field.name, "plugin_version") != 0) return false;
  const char* expected = isNamespace ? kOperatorNamespace : kOperatorVersion;
  if (field.type != PluginFieldType::kCHAR || field.data == nullptr || field.length < 1 || textOf(field) != expected) {
    throw PluginError(given(field) + "must be \"" + expected + "\"; this is that plugin, correct the node's attribute");
  }
  return true;
}

void read(const PluginField& field, Attributes& attributes) {
  const auto is = [&field](const char* name) { return std::strcmp(field.name, name) == 0; };
  if (is("grid")) {
    attributes.grid = integersOf<3>(field);
  } else if (is("tile")) {
    attributes.tile = integersOf<3>(field);
  } else if (is("window")) {
    attributes.window = integersOf<3>(field);
  } else if (is("bucket")) {
    attributes.bucket = integersOf<3>(field);
  } else if (is("keep")) {
    attributes.keep = integersOf<1>(field)[0];
  } else if (is("coreset_keys")) {
    attributes.coresetKeys = coresetKeysOf(field);
  } else if (is("text_tokens")) {
    attributes.textTokens = integersOf<1>(field)[0];
  } else if (is("scale")) {
    attributes.scale = scaleOf(field);
  } else if (is("attention_precision")) {
    attributes.attentionPrecision = attentionPrecisionOf(field);
  } else {
    throw PluginError(given(field) + "is not a field of this plugin; the fields are " + fieldNames() + "; remove it");
  }
}

std::string shapeOf(const Int3& extents) {
  return std::to_string(extents[0]) + "x" + std::to_string(extents[1]) + "x" + std::to_string(extents[2]);
}

// Enough digits to tell any two floats apart.
std::string scaleText(float scale) {
  if (scale == 0.0F) return "1/sqrt(D)";
  char text[32];
  std::snprintf(text, sizeof(text), "%.9g", static_cast<double>(scale));
  return text;
}

}  // namespace

Attributes attributesFromFields(const trt::PluginFieldCollection* fields) {
  if (fields == nullptr || fields->nbFields < 0 || (fields->nbFields > 0 && fields->fields == nullptr)) {
    throw PluginError("field collection: null or of negative length; pass the fields " + fieldNames());
  }
  Attributes attributes;
  std::vector<std::string> seen;
  for (int32_t i = 0; i < fields->nbFields; ++i) {
    const PluginField& field = fields->fields[i];
    if (field.name == nullptr) {
      throw PluginError("field " + std::to_string(i) + ": has no name; the fields are " + fieldNames());
    }
    for (const std::string& name : seen) {
      if (name == field.name) throw PluginError(given(field) + "stands twice; keep one of the two");
    }
    seen.emplace_back(field.name);
    if (!isSelector(field)) read(field, attributes);
  }
  for (const FieldSpec& spec : kFieldList) {
    bool present = spec.presence == Presence::kOptional;
    for (const std::string& name : seen) present = present || name == spec.name;
    if (!present) {
      throw PluginError(
          std::string("field ") + spec.name + ": is missing; every node carries " + fieldNames() +
          " (scale and attention_precision may be left out); export the model again, or add the attribute");
    }
  }
  checkedProblemOf(attributes, trt::DataType::kHALF, {});  // the kernels' rules on grid, tile, window, bucket and keep
  return attributes;
}

std::string describe(const Attributes& attributes) {
  return "grid=" + shapeOf(attributes.grid) + " tile=" + shapeOf(attributes.tile) +
         " window=" + shapeOf(attributes.window) + " bucket=" + shapeOf(attributes.bucket) +
         " keep=" + std::to_string(attributes.keep) + " coreset_keys=" + nameOf(attributes.coresetKeys) +
         " text_tokens=" + std::to_string(attributes.textTokens) + " scale=" + scaleText(attributes.scale) +
         " attention_precision=" + nameOf(attributes.attentionPrecision);
}

SerializedFields::SerializedFields(const Attributes& attributes)
    : attributes_(attributes),
      coresetKeys_(nameOf(attributes.coresetKeys)),
      attentionPrecision_(nameOf(attributes.attentionPrecision)) {
  const auto text = [](const char* name, const std::string& value) {
    return PluginField(name, value.data(), PluginFieldType::kCHAR, static_cast<int32_t>(value.size()));
  };
  fields_ = {
      {"grid", attributes_.grid.data(), PluginFieldType::kINT32, 3},
      {"tile", attributes_.tile.data(), PluginFieldType::kINT32, 3},
      {"window", attributes_.window.data(), PluginFieldType::kINT32, 3},
      {"bucket", attributes_.bucket.data(), PluginFieldType::kINT32, 3},
      {"keep", &attributes_.keep, PluginFieldType::kINT32, 1},
      text("coreset_keys", coresetKeys_),
      {"text_tokens", &attributes_.textTokens, PluginFieldType::kINT32, 1},
      {"scale", &attributes_.scale, PluginFieldType::kFLOAT32, 1},
      text("attention_precision", attentionPrecision_),
  };
  collection_.nbFields = static_cast<int32_t>(fields_.size());
  collection_.fields = fields_.data();
}

}  // namespace vorta::plugin
