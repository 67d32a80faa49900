// SPDX-License-Identifier: Apache-2.0
//
// NormModulate and ResidualNormModulate as layers, each also with quantised outputs: vorta_trt/block_operators.h.
// Letters: B batch, X tokens, E features, M rows of a modulation.
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
// Outputs are [B, X, E], quantised ones [B, X, E/4] and [B, X].

struct Fields {
  float epsilon;
  int32_t first_tokens;
};

// What both operators' structs have in common. Extents that are not known stand as valid values.
template <typename Params>
Params paramsOf(const Setting& setting) {
  const bool known = !setting.inputs.empty();
  const auto fields = setting.record.as<Fields>();
  Params params{};
  params.struct_size = sizeof(params);
  params.dtype = kernelType(setting.type());
  params.batch = extentOr(known ? setting.inputs[0].d[0] : kUnknown, 1);
  params.token_count = extentOr(known ? setting.inputs[0].d[1] : kUnknown, 1);
  params.features = extentOr(known ? setting.inputs[0].d[2] : kUnknown, 16);
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

// The modulation at input `input`.
vorta_modulation modulation(const Setting& setting, const Memory& memory, int32_t input) {
  const trt::Dims& dims = setting.inputs[input];
  return {static_cast<const float*>(memory.inputs[input]), dims.d[0] == 1 ? 0 : dims.d[1] * dims.d[2],
          dims.d[1] == 1 ? 0 : dims.d[2]};
}

std::vector<OutputAxis> tokensShape() { return {{0, 0}, {0, 1}, {0, 2}}; }

std::vector<OutputAxis> outputShape(int32_t /*output*/, const Setting& /*setting*/) { return tokensShape(); }

// Shape of an output of an operator whose last two outputs are quantised activations and their scales.
template <int32_t quantized>
std::vector<OutputAxis> quantizedShape(int32_t output, const Setting& setting) {
  if (output < quantized) return tokensShape();
  return output == quantized ? packedShape(setting) : std::vector<OutputAxis>{{0, 0}, {0, 1}};
}

// Sets `quantized` to any pointer that is not null: the checks of sizes only look at whether it is given.
template <typename Params>
void wantQuantized(const Setting& setting, Params& params) {
  if (!setting.inputs.empty()) requireConstantFeatures(setting);
  params.quantized = &params;
}

// `outputs` starts with the normed ones.
template <bool quantize, typename Params>
void setOutputs(Params& params, void* const* outputs) {
  if (quantize) {
    params.quantized = outputs[0];
    params.quantized_scale = static_cast<float*>(outputs[1]);
  } else {
    params.output = outputs[0];
  }
}

template <bool quantize>
void checkNorm(const Setting& setting) {
  if (!setting.inputs.empty()) checkShapes(setting, kScale);
  auto params = paramsOf<vorta_norm_modulate_params>(setting);
  if (quantize) wantQuantized(setting, params);
  requireOk(vorta_norm_modulate_validate(&params));
}

template <bool quantize>
void enqueueNorm(const Setting& setting, const Memory& memory) {
  auto params = paramsOf<vorta_norm_modulate_params>(setting);
  params.tokens = memory.inputs[kTokens];
  params.scale = modulation(setting, memory, kScale);
  params.shift = modulation(setting, memory, kShift);
  setOutputs<quantize>(params, memory.outputs);
  for (auto* strides : {&params.tokens_stride, &params.output_stride}) setRowMajor(setting.inputs[0], *strides);
  requireOk(vorta_norm_modulate_enqueue(&params, memory.stream));
}

template <bool quantize>
void checkResidual(const Setting& setting) {
  if (!setting.inputs.empty()) checkShapes(setting, kGate);
  auto params = paramsOf<vorta_residual_norm_modulate_params>(setting);
  if (quantize) wantQuantized(setting, params);
  requireOk(vorta_residual_norm_modulate_validate(&params));
}

template <bool quantize>
void enqueueResidual(const Setting& setting, const Memory& memory) {
  auto params = paramsOf<vorta_residual_norm_modulate_params>(setting);
  params.residual = memory.inputs[kResidual];
  params.update = memory.inputs[kUpdate];
  params.gate = modulation(setting, memory, kGate);
  params.scale = modulation(setting, memory, kResidualScale);
  params.shift = modulation(setting, memory, kResidualShift);
  params.residual_output = memory.outputs[0];
  setOutputs<quantize>(params, memory.outputs + 1);
  for (auto* strides :
       {&params.residual_stride, &params.update_stride, &params.residual_output_stride, &params.output_stride}) {
    setRowMajor(setting.inputs[0], *strides);
  }
  requireOk(vorta_residual_norm_modulate_enqueue(&params, memory.stream));
}

const std::vector<TensorSpec> kNormInputs = {
    {"tokens", Holds::kActivation}, {"scale", Holds::kFloat32}, {"shift", Holds::kFloat32}};
const std::vector<TensorSpec> kResidualInputs = {{"residual", Holds::kActivation},
                                                 {"update", Holds::kActivation},
                                                 {"gate", Holds::kFloat32},
                                                 {"scale", Holds::kFloat32},
                                                 {"shift", Holds::kFloat32}};
constexpr TensorSpec kResidualOutput = {"residual_output", Holds::kActivation};
constexpr TensorSpec kOutput = {"output", Holds::kActivation};
constexpr TensorSpec kQuantized = {"quantized", Holds::kPackedFloat8};
constexpr TensorSpec kQuantizedScale = {"quantized_scale", Holds::kFloat32};

constexpr FieldTable fieldsOf(const char* name) {
  return {name, "1", kNormModulateFields, countOf(kNormModulateFields), nullptr};
}

}  // namespace

const Operator& normModulate() {
  static const Operator op = {
      fieldsOf("NormModulate"), "NM",        kNormInputs, {kOutput},
      checkNorm<false>,         outputShape, nullptr,     enqueueNorm<false>,
  };
  return op;
}

const Operator& normModulateQuantize() {
  static const Operator op = {
      fieldsOf("NormModulateQuantize"),
      "NQ",
      kNormInputs,
      {kQuantized, kQuantizedScale},
      checkNorm<true>,
      quantizedShape<0>,
      nullptr,
      enqueueNorm<true>,
  };
  return op;
}

const Operator& residualNormModulate() {
  static const Operator op = {
      fieldsOf("ResidualNormModulate"),
      "RM",
      kResidualInputs,
      {kResidualOutput, kOutput},
      checkResidual<false>,
      outputShape,
      nullptr,
      enqueueResidual<false>,
  };
  return op;
}

const Operator& residualNormModulateQuantize() {
  static const Operator op = {
      fieldsOf("ResidualNormModulateQuantize"),
      "RQ",
      kResidualInputs,
      {kResidualOutput, kQuantized, kQuantizedScale},
      checkResidual<true>,
      quantizedShape<1>,
      nullptr,
      enqueueResidual<true>,
  };
  return op;
}

}  // namespace vorta::plugin
