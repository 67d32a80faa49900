// SPDX-License-Identifier: Apache-2.0
//
// HeadNorm and QKNormRotary as layers: vorta_trt/block_operators.h. Letters: B batch, X tokens, N heads, D head
// dimension, E = N D features.
#include <string>

#include "operators.h"
#include "tensor_rules.h"
#include "vorta_trt/block_operators.h"

namespace vorta::plugin {
namespace {

enum HeadNormInput : int32_t {
  kTokens = 0,  // [B, X, E]
  kWeight = 1,  // [E] or [D]
};
enum RotaryInput : int32_t {
  kQuery = 0,        // [B, X, E]
  kKey = 1,          // [B, X, E]
  kQueryWeight = 2,  // [E] or [D]
  kKeyWeight = 3,    // as query_weight
  kCos = 4,          // [1, X, 1, D/2]
  kSin = 5,          // as cos
};
// Outputs are [B, X, N, D].

struct Fields {
  int32_t heads;
  float epsilon;
};

Fields fieldsOf(const Setting& setting) { return setting.record.as<Fields>(); }

// D of an input [B, X, E]. E is a constant of every network, and so D can be one of the output.
int64_t headDimOf(const Setting& setting) { return setting.inputs[0].d[2] / fieldsOf(setting).heads; }

// What both operators' structs have in common. Extents that are not known stand as their least valid value.
template <typename Params>
Params paramsOf(const Setting& setting, int32_t weight) {
  const bool known = !setting.inputs.empty();
  Params params{};
  params.struct_size = sizeof(params);
  params.dtype = kernelType(setting.type());
  params.weight_float32 = !setting.types.empty() && setting.types[weight] == trt::DataType::kFLOAT ? 1 : 0;
  params.batch = extentOr(known ? setting.inputs[0].d[0] : kUnknown, 1);
  params.token_count = extentOr(known ? setting.inputs[0].d[1] : kUnknown, 1);
  params.heads = fieldsOf(setting).heads;
  params.head_dim = known ? static_cast<int32_t>(headDimOf(setting)) : 8;
  params.weight_length = extentOr(known ? setting.inputs[weight].d[0] : kUnknown, params.head_dim);
  params.epsilon = fieldsOf(setting).epsilon;
  return params;
}

// Checks heads, and input 0, [B, X, E].
void checkTokens(const Setting& setting) {
  const int32_t heads = fieldsOf(setting).heads;
  if (heads < 1) throw PluginError("heads " + std::to_string(heads) + ": must be at least 1; export the model again");
  if (setting.inputs.empty()) return;
  requireShape(setting, 0, {kUnknown, kUnknown, kUnknown}, "[batch, tokens, features]");
  const int64_t features = setting.inputs[0].d[2];
  if (features == kUnknown || features % heads != 0) {
    throw PluginError(std::string(setting.record.op().inputs[0].name) + " has " +
                      (features == kUnknown ? "an open number of" : std::to_string(features)) +
                      " features: must be a constant of the network that " + std::to_string(heads) +
                      " heads divide; export the model again");
  }
}

void checkWeight(const Setting& setting, int32_t weight) {
  requireShape(setting, weight, {{setting.inputs[0].d[2], headDimOf(setting)}}, "[features or head dimension]");
}

std::vector<OutputAxis> outputShape(int32_t output, const Setting& setting) {
  return {{output, 0}, {output, 1}, {-1, 0, fieldsOf(setting).heads}, {-1, 0, headDimOf(setting)}};
}

void checkHeadNorm(const Setting& setting) {
  checkTokens(setting);
  if (!setting.inputs.empty()) checkWeight(setting, kWeight);
  const auto params = paramsOf<vorta_head_norm_params>(setting, kWeight);
  requireOk(vorta_head_norm_validate(&params));
}

void enqueueHeadNorm(const Setting& setting, const Memory& memory) {
  auto params = paramsOf<vorta_head_norm_params>(setting, kWeight);
  params.tokens = memory.inputs[kTokens];
  params.weight = memory.inputs[kWeight];
  params.output = memory.outputs[0];
  for (auto* strides : {&params.tokens_stride, &params.output_stride}) setRowMajor(setting.inputs[0], *strides);
  requireOk(vorta_head_norm_enqueue(&params, memory.stream));
}

void checkRotary(const Setting& setting) {
  checkTokens(setting);
  if (!setting.inputs.empty()) {
    const trt::Dims& query = setting.inputs[kQuery];
    requireShape(setting, kKey, wantedLike(query), "of query");
    checkWeight(setting, kQueryWeight);
    requireShape(setting, kKeyWeight, wantedLike(setting.inputs[kQueryWeight]), "of query_weight");
    for (int32_t input : {kCos, kSin}) {
      requireShape(setting, input, {1, query.d[1], 1, headDimOf(setting) / 2}, "[1, tokens, 1, head dimension / 2]");
    }
  }
  const auto params = paramsOf<vorta_qk_norm_rotary_params>(setting, kQueryWeight);
  requireOk(vorta_qk_norm_rotary_validate(&params));
}

void enqueueRotary(const Setting& setting, const Memory& memory) {
  auto params = paramsOf<vorta_qk_norm_rotary_params>(setting, kQueryWeight);
  params.query = memory.inputs[kQuery];
  params.key = memory.inputs[kKey];
  params.query_weight = memory.inputs[kQueryWeight];
  params.key_weight = memory.inputs[kKeyWeight];
  params.cos = static_cast<const float*>(memory.inputs[kCos]);
  params.sin = static_cast<const float*>(memory.inputs[kSin]);
  params.query_output = memory.outputs[0];
  params.key_output = memory.outputs[1];
  for (auto* strides :
       {&params.query_stride, &params.key_stride, &params.query_output_stride, &params.key_output_stride}) {
    setRowMajor(setting.inputs[kQuery], *strides);
  }
  requireOk(vorta_qk_norm_rotary_enqueue(&params, memory.stream));
}

}  // namespace

const Operator& headNorm() {
  static const Operator op = {
      {"HeadNorm", "1", kHeadNormFields, countOf(kHeadNormFields), nullptr},
      "HN",
      {{"tokens", Holds::kActivation}, {"weight", Holds::kWeight}},
      {{"output", Holds::kActivation}},
      checkHeadNorm,
      outputShape,
      nullptr,
      enqueueHeadNorm,
  };
  return op;
}

const Operator& qkNormRotary() {
  static const Operator op = {
      {"QKNormRotary", "1", kHeadNormFields, countOf(kHeadNormFields), nullptr},
      "QK",
      {{"query", Holds::kActivation},
       {"key", Holds::kActivation},
       {"query_weight", Holds::kWeight},
       {"key_weight", Holds::kWeight},
       {"cos", Holds::kFloat32},
       {"sin", Holds::kFloat32}},
      {{"query_output", Holds::kActivation}, {"key_output", Holds::kActivation}},
      checkRotary,
      outputShape,
      nullptr,
      enqueueRotary,
  };
  return op;
}

}  // namespace vorta::plugin
