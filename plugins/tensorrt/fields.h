// SPDX-License-Identifier: Apache-2.0
//
// Attributes of one RoutedAttention node, read from TensorRT's plugin fields and written back to them.
#ifndef VORTA_TENSORRT_FIELDS_H_
#define VORTA_TENSORRT_FIELDS_H_

#include <array>
#include <string>
#include <vector>

#include "field_list.h"
#include "vorta_trt/routed_attention.h"

namespace vorta::plugin {

using Int3 = std::array<int32_t, 3>;

struct Attributes {
  Int3 grid{};    // frames, height, width of the token grid
  Int3 tile{};    // tokens of a tile
  Int3 window{};  // tiles, odd
  Int3 bucket{};  // tokens of a bucket
  int32_t keep = 0;
  vorta_coreset_keys coresetKeys = VORTA_KEYS_BY_QUERY;
  int32_t textTokens = 0;
  float scale = 0.0F;  // 0: 1/sqrt(head dimension)
  vorta_attention_precision attentionPrecision = VORTA_PRECISION_SAME;

  int64_t videoTokens() const { return int64_t{grid[0]} * grid[1] * grid[2]; }
  int64_t tokens() const { return videoTokens() + textTokens; }
};

// Reads and validates `fields`; the fields of a network (build) and those of an engine (runtime) are the same.
// Throws PluginError that names field, given value, rule and remedy.
Attributes attributesFromFields(const trt::PluginFieldCollection* fields);

// "grid=20x45x80 tile=5x9x8 ...": for the timing cache and the engine inspector.
std::string describe(const Attributes& attributes);

// The fields that attributesFromFields() reads back. Points into itself, hence neither copied nor moved.
class SerializedFields {
 public:
  explicit SerializedFields(const Attributes& attributes);
  SerializedFields(const SerializedFields&) = delete;
  SerializedFields& operator=(const SerializedFields&) = delete;

  const trt::PluginFieldCollection* collection() const { return &collection_; }

 private:
  Attributes attributes_;
  std::string coresetKeys_;
  std::string attentionPrecision_;
  std::vector<trt::PluginField> fields_;
  trt::PluginFieldCollection collection_;
};

}  // namespace vorta::plugin

#endif  // VORTA_TENSORRT_FIELDS_H_
