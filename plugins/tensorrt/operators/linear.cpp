// SPDX-License-Identifier: Apache-2.0
//
// Linear, Fp8Linear and Quantize as layers: vorta_trt/linear.h. Letters: B batch, X tokens, K input features, O output
// features.
#include "vorta_trt/linear.h"

#include <utility>
#include <vector>

#include "operators.h"
#include "products.h"
#include "tensor_rules.h"

namespace vorta::plugin {
namespace {

using Params = vorta_linear_params;

enum Input : int32_t {
  kInput = 0,   // [B, X, K]; of Fp8Linear [B, X, K/4]
  kWeight = 1,  // [O, K]
  kBias = 2,    // [O]
};
enum Fp8Input : int32_t {
  kInputScale = 1,   // [B, X]
  kFp8Weight = 2,    // [O, K]; in int32: [O, K/4]
  kWeightScale = 3,  // [O]
  kFp8Bias = 4,      // [O]
};
enum Output : int32_t { kOutput = 0 };                                  // [B, X, O]
enum QuantizeOutput : int32_t { kQuantized = 0, kQuantizedScale = 1 };  // [B, X, K/4], [B, X]

struct Fields {
  int32_t activation;
};

constexpr int32_t kLeastFeatures = 16;  // stand for a number that is not known yet

constexpr bool isFp8(vorta_linear_precision precision) { return precision == VORTA_LINEAR_FP8; }

template <vorta_linear_precision precision>
inline constexpr int32_t kWeightOf = isFp8(precision) ? int32_t{kFp8Weight} : int32_t{kWeight};

// Input features, which the last axis of the input counts.
template <vorta_linear_precision precision>
int64_t featuresOf(const Setting& setting) {
  const int64_t columns = setting.inputs[kInput].d[2];
  return isFp8(precision) && columns != kUnknown ? columns * kPerInt32 : columns;
}

// Batch times tokens of input 0.
int64_t rowsOf(const Setting& setting) {
  if (setting.inputs.empty()) return 1;
  return int64_t{extentOr(setting.inputs[kInput].d[0], 1)} * extentOr(setting.inputs[kInput].d[1], 1);
}

template <vorta_linear_precision precision>
Params paramsOf(const Setting& setting) {
  const bool known = !setting.inputs.empty();
  Params params{};
  params.struct_size = sizeof(params);
  params.dtype = kernelType(setting.type());
  params.precision = precision;
  params.activation = setting.record.as<Fields>().activation;
  params.in_features = extentOr(known ? featuresOf<precision>(setting) : kUnknown, kLeastFeatures);
  params.out_features = extentOr(known ? setting.inputs[kWeightOf<precision>].d[0] : kUnknown, kLeastFeatures);
  params.rows = rowsOf(setting);
  params.input_stride = params.in_features;
  params.output_stride = params.out_features;
  return params;
}

// Columns of the weight for `features` input features.
template <vorta_linear_precision precision>
Wanted weightColumns(const Setting& setting, int64_t features) {
  if (!isFp8(precision) || features == kUnknown) return features;
  const int64_t packed = features / kPerInt32;
  if (setting.types.empty()) return {features, packed};
  return setting.types[kFp8Weight] == trt::DataType::kINT32 ? packed : features;
}

template <vorta_linear_precision precision>
void check(const Setting& setting) {
  if (!setting.inputs.empty()) {
    constexpr int32_t weight = kWeightOf<precision>;
    requireShape(setting, kInput, {kUnknown, kUnknown, kUnknown},
                 isFp8(precision) ? "[batch, tokens, input features / 4]" : "[batch, tokens, input features]");
    if (isFp8(precision)) {
      const trt::Dims& input = setting.inputs[kInput];
      requireShape(setting, kInputScale, {input.d[0], input.d[1]}, "[batch, tokens]");
    }
    requireShape(setting, weight, {kUnknown, weightColumns<precision>(setting, featuresOf<precision>(setting))},
                 isFp8(precision) ? "[output features, input features, or a fourth of them as int32]"
                                  : "[output features, input features]");
    const int64_t outputs = setting.inputs[weight].d[0];
    for (size_t input = weight + 1; input < setting.inputs.size(); ++input) {
      requireShape(setting, static_cast<int32_t>(input), {outputs}, "[output features]");
    }
  }
  const Params params = paramsOf<precision>(setting);
  requireOk(vorta_linear_validate(&params));
}

template <vorta_linear_precision precision>
std::vector<OutputAxis> outputShape(int32_t /*output*/, const Setting& /*setting*/) {
  return {{kInput, 0}, {kInput, 1}, {kWeightOf<precision>, 0}};
}

template <vorta_linear_precision precision>
void enqueue(const Setting& setting, const Memory& memory) {
  Params params = paramsOf<precision>(setting);
  params.input = memory.inputs[kInput];
  params.weight = memory.inputs[kWeightOf<precision>];
  if (isFp8(precision)) {
    params.input_scale = static_cast<const float*>(memory.inputs[kInputScale]);
    params.weight_scale = static_cast<const float*>(memory.inputs[kWeightScale]);
    params.bias = memory.inputs[kFp8Bias];
  } else {
    params.bias = memory.inputs[kBias];
  }
  params.output = memory.outputs[kOutput];
  params.workspace = memory.workspace;
  // TensorRT's workspace has the size for the profile's maximum, which is at least this size.
  requireOk(vorta_linear_workspace_size(&params, &params.workspace_bytes));
  if (params.rows > 0) reportProducts(setting.record.op().fields.name, precision);
  requireOk(vorta_linear_enqueue(&params, memory.stream));
}

template <vorta_linear_precision precision>
Operator tableOf(const char* name, const char* tag, std::vector<TensorSpec> inputs) {
  return {{name, "1", kLinearFields, countOf(kLinearFields), kActivationChoices},
          tag,
          std::move(inputs),
          {{"output", Holds::kActivation}},
          check<precision>,
          outputShape<precision>,
          askedWorkspaceBytes<paramsOf<precision>, vorta_linear_workspace_size>,
          enqueue<precision>};
}

vorta_quantize_params quantizeParamsOf(const Setting& setting) {
  vorta_quantize_params params{};
  params.struct_size = sizeof(params);
  params.dtype = kernelType(setting.type());
  params.features = extentOr(setting.inputs.empty() ? kUnknown : setting.inputs[kInput].d[2], kLeastFeatures);
  params.rows = rowsOf(setting);
  params.input_stride = params.features;
  return params;
}

void checkQuantize(const Setting& setting) {
  if (!setting.inputs.empty()) {
    requireShape(setting, kInput, {kUnknown, kUnknown, kUnknown}, "[batch, tokens, features]");
    requireConstantFeatures(setting);
  }
  const vorta_quantize_params params = quantizeParamsOf(setting);
  requireOk(vorta_quantize_validate(&params));
}

std::vector<OutputAxis> quantizeShape(int32_t output, const Setting& setting) {
  return output == kQuantized ? packedShape(setting) : std::vector<OutputAxis>{{kInput, 0}, {kInput, 1}};
}

void enqueueQuantize(const Setting& setting, const Memory& memory) {
  vorta_quantize_params params = quantizeParamsOf(setting);
  params.input = memory.inputs[kInput];
  params.quantized = memory.outputs[kQuantized];
  params.quantized_scale = static_cast<float*>(memory.outputs[kQuantizedScale]);
  requireOk(vorta_quantize_enqueue(&params, memory.stream));
}

}  // namespace

const Operator& quantize() {
  static const Operator op = {
      {"Quantize", "1", nullptr, 0, nullptr},
      "QU",
      {{"tokens", Holds::kActivation}},
      {{"quantized", Holds::kPackedFloat8}, {"quantized_scale", Holds::kFloat32}},
      checkQuantize,
      quantizeShape,
      nullptr,
      enqueueQuantize,
  };
  return op;
}

const Operator& linear() {
  static const Operator op = tableOf<VORTA_LINEAR_SAME>(
      "Linear", "LI", {{"input", Holds::kActivation}, {"weight", Holds::kActivation}, {"bias", Holds::kActivation}});
  return op;
}

const Operator& fp8Linear() {
  static const Operator op = tableOf<VORTA_LINEAR_FP8>("Fp8Linear", "FL",
                                                       {{"input", Holds::kPackedFloat8},
                                                        {"input_scale", Holds::kFloat32},
                                                        {"weight", Holds::kFloat8},
                                                        {"weight_scale", Holds::kFloat32},
                                                        {"bias", Holds::kActivation}});
  return op;
}

}  // namespace vorta::plugin
