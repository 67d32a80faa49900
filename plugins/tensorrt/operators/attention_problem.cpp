// SPDX-License-Identifier: Apache-2.0
#include "attention_problem.h"

#include <cstddef>

#include "operators.h"
#include "tensor_rules.h"

namespace vorta::plugin {
namespace {

using Problem = vorta_routed_attention_problem;

// In the order of the C API's enumerations.
constexpr const char* kCoresetKeys[] = {"query", "key"};
constexpr const char* kAttentionPrecisions[] = {"same", "fp8"};
static_assert(VORTA_KEYS_BY_QUERY == 0 && VORTA_KEYS_BY_KEY == 1 && VORTA_PRECISION_SAME == 0 &&
              VORTA_PRECISION_FP8 == 1);

// The problem's members from `grid` on are the record: the table's fields, in its order.
constexpr size_t kMembers[] = {
    offsetof(Problem, grid),        offsetof(Problem, tile),  offsetof(Problem, window),
    offsetof(Problem, bucket),      offsetof(Problem, keep),  offsetof(Problem, coreset_keys),
    offsetof(Problem, text_tokens), offsetof(Problem, scale), offsetof(Problem, attention_precision),
    offsetof(Problem, reserved)};
constexpr size_t kRecordBytes = offsetof(Problem, reserved) - offsetof(Problem, grid);

constexpr bool membersAreTheRecord() {
  size_t offset = offsetof(Problem, grid);
  for (int32_t i = 0; i < kRoutedAttentionFieldCount; ++i) {
    if (kMembers[i] != offset) return false;
    offset += recordBytes(kAttentionFields[i]);
  }
  return kMembers[kRoutedAttentionFieldCount] == offset;
}
static_assert(membersAreTheRecord(), "the record is a part of vorta_routed_attention_problem");

}  // namespace

const Choices kAttentionChoices[] = {{"coreset_keys", kCoresetKeys, 2},
                                     {"attention_precision", kAttentionPrecisions, 2}};

Problem attentionFields(const Setting& setting) {
  Problem problem{};
  setting.record.copyFirstTo(problem.grid, kRecordBytes);
  return problem;
}

Problem attentionProblem(const Setting& setting, int32_t leastHeads) {
  Problem problem = attentionFields(setting);
  const trt::Dims unknown{4, {kUnknown, kUnknown, kUnknown, kUnknown}};
  const trt::Dims& query = setting.inputs.empty() ? unknown : setting.inputs[kAttentionQuery];
  problem.struct_size = sizeof(problem);
  problem.dtype = kernelType(setting.type());
  problem.batch = extentOr(query.d[0], 1);
  problem.heads = extentOr(query.d[2], leastHeads);
  problem.head_dim = extentOr(query.d[3], 8);
  return problem;
}

void checkAttentionShapes(const Setting& setting, int32_t routes, int64_t tokens, const std::string& expected) {
  requireShape(setting, kAttentionQuery, {kUnknown, tokens, kUnknown, kUnknown}, expected);
  const trt::Dims& query = setting.inputs[kAttentionQuery];
  for (int32_t input : {kAttentionQuery + 1, kAttentionQuery + 2}) {
    requireShape(setting, input, wantedLike(query), "of query");
  }
  requireShape(setting, routes, {query.d[0], query.d[2]}, "[batch, heads]");
}

vorta_routed_attention_tensors attentionTensors(const Setting& setting, const Memory& memory, int32_t routes,
                                                int32_t textLength) {
  vorta_routed_attention_tensors tensors{};
  tensors.struct_size = sizeof(tensors);
  tensors.query = memory.inputs[kAttentionQuery];
  tensors.key = memory.inputs[kAttentionQuery + 1];
  tensors.value = memory.inputs[kAttentionQuery + 2];
  tensors.routes = static_cast<const int32_t*>(memory.inputs[routes]);
  if (attentionFields(setting).text_tokens > 0) {
    tensors.text_length = static_cast<const int32_t*>(memory.inputs[textLength]);
  }
  tensors.output = memory.outputs[0];
  for (auto* strides : {&tensors.query_stride, &tensors.key_stride, &tensors.value_stride, &tensors.output_stride}) {
    setRowMajor(setting.inputs[kAttentionQuery], *strides);
  }
  tensors.workspace = memory.workspace;
  return tensors;
}

}  // namespace vorta::plugin
