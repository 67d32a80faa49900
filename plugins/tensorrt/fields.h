// SPDX-License-Identifier: Apache-2.0
//
// Attributes of one RoutedAttention node, which its plugin fields hold.
#ifndef VORTA_TENSORRT_FIELDS_H_
#define VORTA_TENSORRT_FIELDS_H_

#include "field_table.h"
#include "vorta_trt/routed_attention.h"

namespace vorta::plugin {

// The C API's problem, of which only the members from `grid` on are known before the shapes are.
struct Attributes {
  vorta_routed_attention_problem problem{};

  int32_t textTokens() const { return problem.text_tokens; }
  int64_t videoTokens() const { return int64_t{problem.grid[0]} * problem.grid[1] * problem.grid[2]; }
  int64_t tokens() const { return videoTokens() + textTokens(); }

  // The values of the fields, as field_table.h has them.
  const void* record() const { return problem.grid; }
  void* record() { return problem.grid; }
};

inline constexpr size_t kRecordBytes = 68;

// The operator's table: names, types and choices of its fields.
extern const FieldTable kRoutedAttention;

// Reads and validates fields and the kernels' rules on them. Throws PluginError.
Attributes attributesFromFields(const trt::PluginFieldCollection* fields);

}  // namespace vorta::plugin

#endif  // VORTA_TENSORRT_FIELDS_H_
