// SPDX-License-Identifier: Apache-2.0
//
// NormModulate and ResidualNormModulate as layers: vorta_trt/block_operators.h. Letters: B batch, X tokens, E features,
// M rows of a modulation.
#include <string>

#include "operators.h"
#include "tensor_rules.h"
#include "vorta_trt/block_operators.h"

namespace vorta::plugin {
namespace {

enum NormInput : int32_t {
  kTokens = 0,  // [B, X, E]
  kScale = 1,   // [B or 1, M, E]
  kShift = 2,   // [B or 1, M, E]
};
enum ResidualInput : int32_t {
  kResidual = 0,       // [B, X, E]
  kUpdate = 1,         // [B, X, E]
  kGate = 2,           // [B or 1, M, E]
  kResidualScale = 3,  // [B or 1, M, E]
  kResidualShift = 4,  // [B or 1, M, E]
};
// Outputs are [B, X, E].

struct Fields {
  float epsilon;
  int32_t first_tokens;
};

// What both operators' structs have in common. Extents that are not known stand as their least valid value.
template <typename Params>
Params paramsOf(const Setting& setting) {
  const bool known = !setting.inputs.empty();
  const auto fields = setting.record.as<Fields>();
  Params params{};
  params.struct_size = sizeof(params);
  params.dtype = kernelType(setting.type());
  params.batch = extentOr(known ? setting.inputs[0].d[0] : kUnknown, 1);
  params.token_count = extentOr(known ? setting.inputs[0].d[1] : kUnknown, 1);
  params.features = extentOr(known ? setting.inputs[0].d[2] : kUnknown, 8);
  params.first_tokens = fields.first_tokens;
  params.epsilon = fields.epsilon;
  return params;
}

// Checks input 0, and modulations from `first` on.
void checkShapes(const Setting& setting, int32_t first) {
  requireShape(setting, 0, {kUnknown, kUnknown, kUnknown}, "[batch, tokens, features]");
  const trt::Dims& tokens = setting.inputs[0];
  for (int32_t input = 1; input < first; ++input) {
    requireShape(setting, input, wantedLike(tokens), std::string("of ") + setting.record.op().inputs[0].name);
  }
  for (size_t input = first; input < setting.inputs.size(); ++input) {
    requireShape(setting, static_cast<int32_t>(input), {{tokens.d[0], 1}, {1, 2}, tokens.d[2]},
                 "[batch or 1, 1 or 2, features]");
  }
}

// Input `input`, a modulation.
vorta_modulation modulation(const Setting& setting, const Memory& memory, int32_t input) {
  const trt::Dims& dims = setting.inputs[input];
  return {static_cast<const float*>(memory.inputs[input]), dims.d[0] == 1 ? 0 : dims.d[1] * dims.d[2],
          dims.d[1] == 1 ? 0 : dims.d[2]};
}

std::vector<OutputAxis> outputShape(int32_t /*output*/, const Setting& /*setting*/) { return {{0, 0}, {0, 1}, {0, 2}}; }

void checkNorm(const Setting& setting) {
  if (!setting.inputs.empty()) checkShapes(setting, kScale);
  const auto params = paramsOf<vorta_norm_modulate_params>(setting);
  requireOk(vorta_norm_modulate_validate(&params));
}

void enqueueNorm(const Setting& setting, const Memory& memory) {
  auto params = paramsOf<vorta_norm_modulate_params>(setting);
  params.tokens = memory.inputs[kTokens];
  params.scale = modulation(setting, memory, kScale);
  params.shift = modulation(setting, memory, kShift);
  params.output = memory.outputs[0];
  for (auto* strides : {&params.tokens_stride, &params.output_stride}) setRowMajor(setting.inputs[0], *strides);
  requireOk(vorta_norm_modulate_enqueue(&params, memory.stream));
}

void checkResidual(const Setting& setting) {
  if (!setting.inputs.empty()) checkShapes(setting, kGate);
  const auto params = paramsOf<vorta_residual_norm_modulate_params>(setting);
  requireOk(vorta_residual_norm_modulate_validate(&params));
}

void enqueueResidual(const Setting& setting, const Memory& memory) {
  auto params = paramsOf<vorta_residual_norm_modulate_params>(setting);
  params.residual = memory.inputs[kResidual];
  params.update = memory.inputs[kUpdate];
  params.gate = modulation(setting, memory, kGate);
  params.scale = modulation(setting, memory, kResidualScale);
  params.shift = modulation(setting, memory, kResidualShift);
  params.residual_output = memory.outputs[0];
  params.output = memory.outputs[1];
  for (auto* strides :
       {&params.residual_stride, &params.update_stride, &params.residual_output_stride, &params.output_stride}) {
    setRowMajor(setting.inputs[0], *strides);
  }
  requireOk(vorta_residual_norm_modulate_enqueue(&params, memory.stream));
}

}  // namespace

const Operator& normModulate() {
  static const Operator op = {
      {"NormModulate", "1", kNormModulateFields, countOf(kNormModulateFields), nullptr},
      "NM",
      {{"tokens", Holds::kActivation}, {"scale", Holds::kFloat32}, {"shift", Holds::kFloat32}},
      {{"output", Holds::kActivation}},
      checkNorm,
      outputShape,
      nullptr,
      enqueueNorm,
  };
  return op;
}

const Operator& residualNormModulate() {
  static const Operator op = {
      {"ResidualNormModulate", "1", kNormModulateFields, countOf(kNormModulateFields), nullptr},
      "RM",
      {{"residual", Holds::kActivation},
       {"update", Holds::kActivation},
       {"gate", Holds::kFloat32},
       {"scale", Holds::kFloat32},
       {"shift", Holds::kFloat32}},
      {{"residual_output", Holds::kActivation}, {"output", Holds::kActivation}},
      checkResidual,
      outputShape,
      nullptr,
      enqueueResidual,
  };
  return op;
}

}  // namespace vorta::plugin
