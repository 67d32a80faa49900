// SPDX-License-Identifier: Apache-2.0
#include "fields.h"

#include <cstddef>

#include "shapes.h"

namespace vorta::plugin {
namespace {

using Problem = vorta_routed_attention_problem;

// In the order of the C API's enumerations.
constexpr const char* kCoresetKeys[] = {"query", "key"};
constexpr const char* kAttentionPrecisions[] = {"same", "fp8"};
static_assert(VORTA_KEYS_BY_QUERY == 0 && VORTA_KEYS_BY_KEY == 1 && VORTA_PRECISION_SAME == 0 &&
              VORTA_PRECISION_FP8 == 1);
constexpr Choices kChoices[] = {{"coreset_keys", kCoresetKeys, 2}, {"attention_precision", kAttentionPrecisions, 2}};

// The problem's members from `grid` on are the record: the table's fields, in its order.
constexpr size_t kMembers[] = {
    offsetof(Problem, grid),        offsetof(Problem, tile),  offsetof(Problem, window),
    offsetof(Problem, bucket),      offsetof(Problem, keep),  offsetof(Problem, coreset_keys),
    offsetof(Problem, text_tokens), offsetof(Problem, scale), offsetof(Problem, attention_precision),
    offsetof(Problem, reserved)};

constexpr bool membersAreTheRecord() {
  size_t offset = offsetof(Problem, grid);
  for (int32_t i = 0; i < kFieldCount; ++i) {
    if (kMembers[i] != offset) return false;
    offset += recordBytes(kFieldList[i]);
  }
  return kMembers[kFieldCount] == offset && offset - offsetof(Problem, grid) == kRecordBytes;
}
static_assert(membersAreTheRecord(), "the record is a part of vorta_routed_attention_problem");

}  // namespace

const FieldTable kRoutedAttention = {kOperatorName, kOperatorVersion, kFieldList, kFieldCount, kChoices};

Attributes attributesFromFields(const trt::PluginFieldCollection* fields) {
  Attributes attributes;
  readFields(kRoutedAttention, fields, attributes.record());
  checkedProblemOf(attributes, trt::DataType::kHALF, {});  // the kernels' rules on grid, tile, window, bucket and keep
  return attributes;
}

}  // namespace vorta::plugin
