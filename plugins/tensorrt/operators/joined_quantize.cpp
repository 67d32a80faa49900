// SPDX-License-Identifier: Apache-2.0
//
// JoinedQuantize as a layer: Quantize of vorta_trt/linear.h with a second input. Letters: B batch, X tokens, J and K
// features of the first and the second input.
#include "operators.h"
#include "tensor_rules.h"
#include "vorta_trt/linear.h"

namespace vorta::plugin {
namespace {

enum Input : int32_t {
  kFirst = 0,   // [B, X, J]
  kSecond = 1,  // [B, X, K]
};
enum Output : int32_t { kQuantized = 0, kQuantizedScale = 1 };  // [B, X, (J + K)/4], [B, X]

constexpr int32_t kLeastFeatures = 8;  // stand for a number that is not known yet

vorta_quantize_params paramsOf(const Setting& setting) {
  const bool known = !setting.inputs.empty();
  const auto extent = [&](int32_t input, int32_t axis) { return known ? setting.inputs[input].d[axis] : kUnknown; };
  vorta_quantize_params params{};
  params.struct_size = sizeof(params);
  params.dtype = kernelType(setting.type());
  params.input_stride = extentOr(extent(kFirst, 2), kLeastFeatures);
  params.second_features = extentOr(extent(kSecond, 2), kLeastFeatures);
  params.second_stride = params.second_features;
  params.features = extentOr(params.input_stride + params.second_stride, kLeastFeatures);
  params.rows = int64_t{extentOr(extent(kFirst, 0), 1)} * extentOr(extent(kFirst, 1), 1);
  return params;
}

void check(const Setting& setting) {
  if (!setting.inputs.empty()) {
    requireShape(setting, kFirst, {kUnknown, kUnknown, kUnknown}, "[batch, tokens, features]");
    const trt::Dims& first = setting.inputs[kFirst];
    requireShape(setting, kSecond, {first.d[0], first.d[1], kUnknown}, "[batch, tokens, further features]");
    requireConstantFeatures(setting, kFirst);
    requireConstantFeatures(setting, kSecond);
  }
  const vorta_quantize_params params = paramsOf(setting);
  requireOk(vorta_quantize_validate(&params));
}

std::vector<OutputAxis> outputShape(int32_t output, const Setting& setting) {
  std::vector<OutputAxis> shape = {{kFirst, 0}, {kFirst, 1}};
  if (output == kQuantized) {
    shape.push_back({-1, 0, (setting.inputs[kFirst].d[2] + setting.inputs[kSecond].d[2]) / kPerInt32});
  }
  return shape;
}

void enqueue(const Setting& setting, const Memory& memory) {
  vorta_quantize_params params = paramsOf(setting);
  params.input = memory.inputs[kFirst];
  params.second_input = memory.inputs[kSecond];
  params.quantized = memory.outputs[kQuantized];
  params.quantized_scale = static_cast<float*>(memory.outputs[kQuantizedScale]);
  requireOk(vorta_quantize_enqueue(&params, memory.stream));
}

}  // namespace

const Operator& joinedQuantize() {
  static const Operator op = {
      {"JoinedQuantize", "1", nullptr, 0, nullptr},
      "JQ",
      {{"first", Holds::kActivation}, {"second", Holds::kActivation}},
      {{"quantized", Holds::kPackedFloat8}, {"quantized_scale", Holds::kFloat32}},
      check,
      outputShape,
      nullptr,
      enqueue,
  };
  return op;
}

}  // namespace vorta::plugin
