// SPDX-License-Identifier: Apache-2.0
//
// CrossAttention as a layer: vorta_trt/cross_attention.h. Letters: B batch, X query tokens, Y key tokens, N heads, D
// head dimension.
#include "vorta_trt/cross_attention.h"

#include "operators.h"
#include "tensor_rules.h"

namespace vorta::plugin {
namespace {

using Params = vorta_cross_attention_params;

enum Input : int32_t {
  kQuery = 0,  // [B, X, N, D]
  kKey = 1,    // [B, Y, N, D]
  kValue = 2,  // [B, Y, N, D]
};
enum Output : int32_t { kAttention = 0 };  // [B, X, N, D]

struct Fields {
  float scale;
};

// The call without its memory; extents that are not known stand as their least valid value.
Params paramsOf(const Setting& setting) {
  const trt::Dims unknown{4, {kUnknown, kUnknown, kUnknown, kUnknown}};
  const trt::Dims& query = setting.inputs.empty() ? unknown : setting.inputs[kQuery];
  const trt::Dims& key = setting.inputs.empty() ? unknown : setting.inputs[kKey];
  Params params{};
  params.struct_size = sizeof(params);
  params.dtype = kernelType(setting.type());
  params.batch = extentOr(query.d[0], 1);
  params.query_tokens = extentOr(query.d[1], 1);
  params.key_tokens = extentOr(key.d[1], 1);
  params.heads = extentOr(query.d[2], 1);
  params.head_dim = extentOr(query.d[3], 8);
  params.scale = setting.record.as<Fields>().scale;
  return params;
}

void check(const Setting& setting) {
  if (!setting.inputs.empty()) {
    requireShape(setting, kQuery, {kUnknown, kUnknown, kUnknown, kUnknown}, "[batch, tokens, heads, head dimension]");
    const trt::Dims& query = setting.inputs[kQuery];
    requireShape(setting, kKey, {query.d[0], kUnknown, query.d[2], query.d[3]},
                 "[batch, key tokens, heads, head dimension]");
    requireShape(setting, kValue, wantedLike(setting.inputs[kKey]), "of key");
  }
  const Params params = paramsOf(setting);
  requireOk(vorta_cross_attention_validate(&params));
}

void enqueue(const Setting& setting, const Memory& memory) {
  Params params = paramsOf(setting);
  params.query = memory.inputs[kQuery];
  params.key = memory.inputs[kKey];
  params.value = memory.inputs[kValue];
  params.output = memory.outputs[kAttention];
  for (auto* strides : {&params.query_stride, &params.output_stride}) setRowMajor(setting.inputs[kQuery], *strides);
  for (auto* strides : {&params.key_stride, &params.value_stride}) setRowMajor(setting.inputs[kKey], *strides);
  requireOk(vorta_cross_attention_enqueue(&params, memory.stream));
}

}  // namespace

const Operator& crossAttention() {
  static const Operator op = {
      {"CrossAttention", "1", kCrossAttentionFields, countOf(kCrossAttentionFields), nullptr},
      "CA",
      {{"query", Holds::kActivation}, {"key", Holds::kActivation}, {"value", Holds::kActivation}},
      {{"attention", Holds::kActivation}},
      check,
      attentionShape,
      nullptr,
      enqueue,
  };
  return op;
}

}  // namespace vorta::plugin
