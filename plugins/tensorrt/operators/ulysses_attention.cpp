// SPDX-License-Identifier: Apache-2.0
//
// UlyssesAttention as a layer: vorta_trt/ulysses_attention.h. Letters: P ranks, B batch, S video tokens, X those of a
// rank, T text tokens, N heads, D head dimension.
#include "vorta_trt/ulysses_attention.h"

#include "attention_problem.h"
#include "operators.h"
#include "tensor_rules.h"

namespace vorta::plugin {
namespace {

using Params = vorta_ulysses_attention_params;

enum Input : int32_t {
  kQuery = kAttentionQuery,  // [B, X+T, N, D]
  kKey,                      // [B, X+T, N, D]
  kValue,                    // [B, X+T, N, D]
  kRoutes,                   // [B, N]
  kHeadOrder,                // [N]
  kTextLength,               // [B]
};

int32_t ranksOf(const Setting& setting) {
  return integerField(setting.record.op().fields, setting.record.data(), "ranks");
}

Params paramsOf(const Setting& setting) {
  Params params{};
  params.struct_size = sizeof(params);
  params.ranks = ranksOf(setting);
  params.attention = attentionProblem(setting, params.ranks > 0 ? params.ranks : 1);
  return params;
}

void checkShapes(const Setting& setting) {
  const vorta_routed_attention_problem problem = attentionFields(setting);
  const int64_t ranks = ranksOf(setting);
  const int64_t shard = (int64_t{problem.grid[0]} * problem.grid[1] * problem.grid[2] + ranks - 1) / ranks;
  checkAttentionShapes(setting, kRoutes, shard + problem.text_tokens,
                       "[batch, grid tokens by ranks " + std::to_string(shard) + " + text_tokens " +
                           std::to_string(problem.text_tokens) + ", heads, head dimension]");
  const trt::Dims& query = setting.inputs[kQuery];
  requireShape(setting, kHeadOrder, {query.d[2]}, "[heads]");
  if (problem.text_tokens > 0) requireShape(setting, kTextLength, {query.d[0]}, "[batch]");
}

void validate(const Setting& setting) {
  const Params params = paramsOf(setting);
  requireOk(vorta_ulysses_attention_validate(&params));
}

void check(const Setting& setting) {
  validate({setting.record, {}, setting.types});
  if (setting.inputs.empty()) return;
  checkShapes(setting);
  validate(setting);
}

void enqueue(const Setting& setting, const Memory& memory) {
  Params params = paramsOf(setting);
  params.rehearsal = memory.rehearsal ? 1 : 0;
  params.tensors = attentionTensors(setting, memory, kRoutes, kTextLength);
  params.head_order = static_cast<const int32_t*>(memory.inputs[kHeadOrder]);
  requireOk(vorta_ulysses_attention_workspace_size(&params, &params.tensors.workspace_bytes));
  requireOk(vorta_ulysses_attention_enqueue(&params, memory.stream));
}

}  // namespace

const Operator& ulyssesAttention() {
  static const Operator op = {
      {"UlyssesAttention", "1", kAttentionFields, countOf(kAttentionFields), kAttentionChoices},
      "UA",
      {{"query", Holds::kActivation},
       {"key", Holds::kActivation},
       {"value", Holds::kActivation},
       {"routes", Holds::kInt32},
       {"head_order", Holds::kInt32},
       {"text_length", Holds::kInt32, "text_tokens"}},
      {{"attention", Holds::kActivation}},
      check,
      attentionShape,
      askedWorkspaceBytes<paramsOf, vorta_ulysses_attention_workspace_size>,
      enqueue,
  };
  return op;
}

}  // namespace vorta::plugin
