// SPDX-License-Identifier: Apache-2.0
//
// RoutedAttention as a layer: vorta_trt/routed_attention.h. Letters: B batch, S video tokens, T text tokens, N heads,
// D head dimension.
#include "vorta_trt/routed_attention.h"

#include <cstddef>

#include "operators.h"
#include "tensor_rules.h"

namespace vorta::plugin {
namespace {

using Problem = vorta_routed_attention_problem;

enum Input : int32_t {
  kQuery = 0,       // [B, S+T, N, D]
  kKey = 1,         // [B, S+T, N, D]
  kValue = 2,       // [B, S+T, N, D]
  kRoutes = 3,      // [B, N]
  kTextLength = 4,  // [B]
};
enum Output : int32_t { kAttention = 0 };  // [B, S+T, N, D]

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
constexpr size_t kRecordBytes = offsetof(Problem, reserved) - offsetof(Problem, grid);

constexpr bool membersAreTheRecord() {
  size_t offset = offsetof(Problem, grid);
  for (int32_t i = 0; i < countOf(kRoutedAttentionFields); ++i) {
    if (kMembers[i] != offset) return false;
    offset += recordBytes(kRoutedAttentionFields[i]);
  }
  return kMembers[countOf(kRoutedAttentionFields)] == offset;
}
static_assert(membersAreTheRecord(), "the record is a part of vorta_routed_attention_problem");

// What the fields say of the problem.
Problem fieldsOf(const Setting& setting) {
  Problem problem{};
  setting.record.copyTo(problem.grid, kRecordBytes);
  return problem;
}

// The problem that the layer poses; extents that are not known stand as their least valid value.
Problem problemOf(const Setting& setting) {
  Problem problem = fieldsOf(setting);
  const trt::Dims unknown{4, {kUnknown, kUnknown, kUnknown, kUnknown}};
  const trt::Dims& query = setting.inputs.empty() ? unknown : setting.inputs[kQuery];
  problem.struct_size = sizeof(problem);
  problem.dtype = kernelType(setting.type());
  problem.batch = extentOr(query.d[0], 1);
  problem.heads = extentOr(query.d[2], 1);
  problem.head_dim = extentOr(query.d[3], 8);
  return problem;
}

void checkShapes(const Setting& setting) {
  const Problem problem = fieldsOf(setting);
  const int64_t videoTokens = int64_t{problem.grid[0]} * problem.grid[1] * problem.grid[2];
  requireShape(setting, kQuery, {kUnknown, videoTokens + problem.text_tokens, kUnknown, kUnknown},
               "[batch, grid tokens " + std::to_string(videoTokens) + " + text_tokens " +
                   std::to_string(problem.text_tokens) + ", heads, head dimension]");
  const trt::Dims& query = setting.inputs[kQuery];
  for (int32_t input : {kKey, kValue}) requireShape(setting, input, wantedLike(query), "of query");
  requireShape(setting, kRoutes, {query.d[0], query.d[2]}, "[batch, heads]");
  if (problem.text_tokens > 0) requireShape(setting, kTextLength, {query.d[0]}, "[batch]");
}

void check(const Setting& setting) {
  if (!setting.inputs.empty()) checkShapes(setting);
  const Problem problem = problemOf(setting);
  requireOk(vorta_routed_attention_validate(&problem));
}

std::vector<OutputAxis> outputShape(int32_t /*output*/, const Setting& /*setting*/) {
  return {{kQuery, 0}, {kQuery, 1}, {kQuery, 2}, {kQuery, 3}};
}

size_t workspaceBytes(const Setting& setting) {
  const Problem problem = problemOf(setting);
  size_t bytes = 0;
  requireOk(vorta_routed_attention_workspace_size(&problem, &bytes));
  return bytes;
}

void enqueue(const Setting& setting, const Memory& memory) {
  const Problem problem = problemOf(setting);
  vorta_routed_attention_tensors tensors{};
  tensors.struct_size = sizeof(tensors);
  tensors.query = memory.inputs[kQuery];
  tensors.key = memory.inputs[kKey];
  tensors.value = memory.inputs[kValue];
  tensors.routes = static_cast<const int32_t*>(memory.inputs[kRoutes]);
  if (problem.text_tokens > 0) tensors.text_length = static_cast<const int32_t*>(memory.inputs[kTextLength]);
  tensors.output = memory.outputs[kAttention];
  for (auto* strides : {&tensors.query_stride, &tensors.key_stride, &tensors.value_stride, &tensors.output_stride}) {
    setRowMajor(setting.inputs[kQuery], *strides);
  }
  tensors.workspace = memory.workspace;
  // TensorRT gave what it was asked for at the profile's maximum, which is at least this.
  requireOk(vorta_routed_attention_workspace_size(&problem, &tensors.workspace_bytes));
  requireOk(vorta_routed_attention_enqueue(&problem, &tensors, memory.stream));
}

}  // namespace

const Operator& routedAttention() {
  static const Operator op = {
      {"RoutedAttention", "1", kRoutedAttentionFields, countOf(kRoutedAttentionFields), kChoices},
      "RA",
      {{"query", Holds::kActivation},
       {"key", Holds::kActivation},
       {"value", Holds::kActivation},
       {"routes", Holds::kInt32},
       {"text_length", Holds::kInt32, "text_tokens"}},
      {{"attention", Holds::kActivation}},
      check,
      outputShape,
      workspaceBytes,
      enqueue,
  };
  return op;
}

}  // namespace vorta::plugin
