// SPDX-License-Identifier: Apache-2.0
//
// GatherTokens as a layer: vorta_trt/gather_tokens.h. Letters: P ranks, B batch, S tokens, X those of a rank, C
// features.
#include "vorta_trt/gather_tokens.h"

#include <string>

#include "operators.h"
#include "tensor_rules.h"

namespace vorta::plugin {
namespace {

using Params = vorta_gather_tokens_params;

constexpr int32_t kInput = 0;  // [B, X, C]
constexpr int64_t kElementBytes = 2;

struct Fields {
  int32_t tokens;
  int32_t ranks;
};

Params paramsOf(const Setting& setting) {
  const auto fields = setting.record.as<Fields>();
  Params params{};
  params.struct_size = sizeof(params);
  params.ranks = fields.ranks;
  params.tokens = fields.tokens;
  if (!setting.inputs.empty()) {
    params.batch = extentOr(setting.inputs[kInput].d[0], 1);
    params.row_bytes = extentOr(setting.inputs[kInput].d[2], 1) * kElementBytes;
  }
  return params;
}

void check(const Setting& setting) {
  const Params params = paramsOf({setting.record, {}, {}});
  requireOk(vorta_gather_tokens_validate(&params));
  if (setting.inputs.empty()) return;
  const int64_t shard = (int64_t{params.tokens} + params.ranks - 1) / params.ranks;
  requireShape(setting, kInput, {kUnknown, shard, kUnknown},
               "[batch, tokens by ranks " + std::to_string(shard) + ", features]");
}

std::vector<OutputAxis> outputShape(int32_t /*output*/, const Setting& setting) {
  return {{kInput, 0}, {-1, 0, setting.record.as<Fields>().tokens}, {kInput, 2}};
}

void enqueue(const Setting& setting, const Memory& memory) {
  Params params = paramsOf(setting);
  params.rehearsal = memory.rehearsal ? 1 : 0;
  params.input = memory.inputs[kInput];
  params.output = memory.outputs[0];
  requireOk(vorta_gather_tokens_enqueue(&params, memory.stream));
}

}  // namespace

const Operator& gatherTokens() {
  static const Operator op = {
      {"GatherTokens", "1", kGatherTokensFields, countOf(kGatherTokensFields), nullptr},
      "GT",
      {{"input", Holds::kActivation}},
      {{"output", Holds::kActivation}},
      check,
      outputShape,
      nullptr,
      enqueue,
  };
  return op;
}

}  // namespace vorta::plugin
