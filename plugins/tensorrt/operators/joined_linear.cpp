// SPDX-License-Identifier: Apache-2.0
//
// JoinedLinear as a layer: vorta_trt/linear.h with a second input. Letters: B batch, X tokens, J and K features of the
// first and the second input, O output features.
#include "operators.h"
#include "products.h"
#include "tensor_rules.h"

namespace vorta::plugin {
namespace {

using Params = vorta_linear_params;

enum Input : int32_t {
  kFirst = 0,   // [B, X, J]
  kSecond = 1,  // [B, X, K]
  kWeight = 2,  // [O, J + K]
  kBias = 3,    // [O]
};
enum Output : int32_t { kOutput = 0 };  // [B, X, O]

constexpr int32_t kLeastFeatures = 8;  // stand for a number that is not known yet

int64_t sumOf(int64_t first, int64_t second) {
  return first == kUnknown || second == kUnknown ? kUnknown : first + second;
}

Params paramsOf(const Setting& setting) {
  const bool known = !setting.inputs.empty();
  const auto extent = [&](int32_t input, int32_t axis) { return known ? setting.inputs[input].d[axis] : kUnknown; };
  Params params{};
  params.struct_size = sizeof(params);
  params.dtype = kernelType(setting.type());
  params.precision = VORTA_LINEAR_SAME;
  params.activation = setting.record.as<int32_t>();
  params.input_stride = extentOr(extent(kFirst, 2), kLeastFeatures);
  params.second_features = extentOr(extent(kSecond, 2), kLeastFeatures);
  params.second_stride = params.second_features;
  params.in_features = extentOr(params.input_stride + params.second_stride, kLeastFeatures);
  params.out_features = extentOr(extent(kWeight, 0), kLeastFeatures);
  params.output_stride = params.out_features;
  params.rows = int64_t{extentOr(extent(kFirst, 0), 1)} * extentOr(extent(kFirst, 1), 1);
  return params;
}

void check(const Setting& setting) {
  if (!setting.inputs.empty()) {
    requireShape(setting, kFirst, {kUnknown, kUnknown, kUnknown}, "[batch, tokens, input features]");
    const trt::Dims& first = setting.inputs[kFirst];
    requireShape(setting, kSecond, {first.d[0], first.d[1], kUnknown}, "[batch, tokens, further input features]");
    requireShape(setting, kWeight, {kUnknown, sumOf(first.d[2], setting.inputs[kSecond].d[2])},
                 "[output features, input features of both]");
    requireShape(setting, kBias, {setting.inputs[kWeight].d[0]}, "[output features]");
  }
  const Params params = paramsOf(setting);
  requireOk(vorta_linear_validate(&params));
}

std::vector<OutputAxis> outputShape(int32_t /*output*/, const Setting& /*setting*/) {
  return {{kFirst, 0}, {kFirst, 1}, {kWeight, 0}};
}

void enqueue(const Setting& setting, const Memory& memory) {
  Params params = paramsOf(setting);
  params.input = memory.inputs[kFirst];
  params.second_input = memory.inputs[kSecond];
  params.weight = memory.inputs[kWeight];
  params.bias = memory.inputs[kBias];
  params.output = memory.outputs[kOutput];
  params.workspace = memory.workspace;
  // TensorRT's workspace has the size for the profile's maximum, which is at least this size.
  requireOk(vorta_linear_workspace_size(&params, &params.workspace_bytes));
  if (params.rows > 0) reportProducts(setting.record.op().fields.name, VORTA_LINEAR_SAME);
  requireOk(vorta_linear_enqueue(&params, memory.stream));
}

}  // namespace

const Operator& joinedLinear() {
  static const Operator op = {{"JoinedLinear", "1", kLinearFields, countOf(kLinearFields), kActivationChoices},
                              "JL",
                              {{"first", Holds::kActivation},
                               {"second", Holds::kActivation},
                               {"weight", Holds::kActivation},
                               {"bias", Holds::kActivation}},
                              {{"output", Holds::kActivation}},
                              check,
                              outputShape,
                              askedWorkspaceBytes<paramsOf, vorta_linear_workspace_size>,
                              enqueue};
  return op;
}

}  // namespace vorta::plugin
