// SPDX-License-Identifier: Apache-2.0
//
// RoutedAttention as a layer: vorta_trt/routed_attention.h. Letters: B batch, S video tokens, T text tokens, N heads,
// D head dimension.
#include "vorta_trt/routed_attention.h"

#include "attention_problem.h"
#include "operators.h"
#include "tensor_rules.h"

namespace vorta::plugin {
namespace {

using Problem = vorta_routed_attention_problem;

enum Input : int32_t {
  kQuery = kAttentionQuery,  // [B, S+T, N, D]
  kKey,                      // [B, S+T, N, D]
  kValue,                    // [B, S+T, N, D]
  kRoutes,                   // [B, N]
  kTextLength,               // [B]
};

Problem problemOf(const Setting& setting) { return attentionProblem(setting, 1); }

void checkShapes(const Setting& setting) {
  const Problem problem = attentionFields(setting);
  const int64_t videoTokens = int64_t{problem.grid[0]} * problem.grid[1] * problem.grid[2];
  checkAttentionShapes(setting, kRoutes, videoTokens + problem.text_tokens,
                       "[batch, grid tokens " + std::to_string(videoTokens) + " + text_tokens " +
                           std::to_string(problem.text_tokens) + ", heads, head dimension]");
  if (problem.text_tokens > 0) requireShape(setting, kTextLength, {setting.inputs[kQuery].d[0]}, "[batch]");
}

void check(const Setting& setting) {
  if (!setting.inputs.empty()) checkShapes(setting);
  const Problem problem = problemOf(setting);
  requireOk(vorta_routed_attention_validate(&problem));
}

void enqueue(const Setting& setting, const Memory& memory) {
  const Problem problem = problemOf(setting);
  vorta_routed_attention_tensors tensors = attentionTensors(setting, memory, kRoutes, kTextLength);
  // TensorRT's workspace has the size for the profile's maximum, which is at least this size.
  tensors.workspace_bytes = askedWorkspaceBytes<problemOf, vorta_routed_attention_workspace_size>(setting);
  requireOk(vorta_routed_attention_enqueue(&problem, &tensors, memory.stream));
}

}  // namespace

const Operator& routedAttention() {
  static const Operator op = {
      {"RoutedAttention", "1", kAttentionFields, kRoutedAttentionFieldCount, kAttentionChoices},
      "RA",
      {{"query", Holds::kActivation},
       {"key", Holds::kActivation},
       {"value", Holds::kActivation},
       {"routes", Holds::kInt32},
       {"text_length", Holds::kInt32, "text_tokens"}},
      {{"attention", Holds::kActivation}},
      check,
      attentionShape,
      askedWorkspaceBytes<problemOf, vorta_routed_attention_workspace_size>,
      enqueue,
  };
  return op;
}

}  // namespace vorta::plugin
