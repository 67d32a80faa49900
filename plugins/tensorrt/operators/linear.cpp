// SPDX-License-Identifier: Apache-2.0
//
// Linear and Fp8Linear as layers: vorta_trt/linear.h. Letters: B batch, X tokens, K input features, O output features.
#include "vorta_trt/linear.h"

#include <atomic>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include "logger.h"
#include "operators.h"
#include "tensor_rules.h"

namespace vorta::plugin {
namespace {

using Params = vorta_linear_params;

enum Input : int32_t {
  kInput = 0,   // [B, X, K]
  kWeight = 1,  // [O, K]; e4m3 in int32: [O, K/4]
  kBias = 2,    // [O]; of Fp8Linear input 3
};
enum Fp8Input : int32_t { kFp8WeightScale = 2, kFp8Bias = 3 };  // [O], [O]
enum Output : int32_t { kOutput = 0 };                          // [B, X, O]

// In the order of the C API's enumeration.
constexpr const char* kActivations[] = {"none", "gelu_tanh"};
static_assert(VORTA_ACTIVATION_NONE == 0 && VORTA_ACTIVATION_GELU_TANH == 1);
constexpr Choices kChoices[] = {{"activation", kActivations, 2}};

struct Fields {
  int32_t activation;
};

constexpr int32_t kLeastFeatures = 16;  // stand for a number that is not known yet
constexpr int64_t kFloat8sOfAnInt32 = 4;

template <vorta_linear_precision precision>
Params paramsOf(const Setting& setting) {
  const bool known = !setting.inputs.empty();
  Params params{};
  params.struct_size = sizeof(params);
  params.dtype = kernelType(setting.type());
  params.precision = precision;
  params.activation = setting.record.as<Fields>().activation;
  params.in_features = extentOr(known ? setting.inputs[kInput].d[2] : kUnknown, kLeastFeatures);
  params.out_features = extentOr(known ? setting.inputs[kWeight].d[0] : kUnknown, kLeastFeatures);
  params.rows = int64_t{extentOr(known ? setting.inputs[kInput].d[0] : kUnknown, 1)} *
                extentOr(known ? setting.inputs[kInput].d[1] : kUnknown, 1);
  params.input_stride = params.in_features;
  params.output_stride = params.out_features;
  return params;
}

// Columns of the weight for `features` input features.
template <vorta_linear_precision precision>
Wanted weightColumns(const Setting& setting, int64_t features) {
  if (precision != VORTA_LINEAR_FP8 || features == kUnknown) return features;
  const int64_t packed = features / kFloat8sOfAnInt32;
  if (setting.types.empty()) return {features, packed};
  return setting.types[kWeight] == trt::DataType::kINT32 ? packed : features;
}

template <vorta_linear_precision precision>
void check(const Setting& setting) {
  if (!setting.inputs.empty()) {
    requireShape(setting, kInput, {kUnknown, kUnknown, kUnknown}, "[batch, tokens, input features]");
    const int64_t features = setting.inputs[kInput].d[2];
    requireShape(setting, kWeight, {kUnknown, weightColumns<precision>(setting, features)},
                 precision == VORTA_LINEAR_FP8 ? "[output features, input features, or a fourth of them as int32]"
                                               : "[output features, input features]");
    const int64_t outputs = setting.inputs[kWeight].d[0];
    for (size_t input = kWeight + 1; input < setting.inputs.size(); ++input) {
      requireShape(setting, static_cast<int32_t>(input), {outputs}, "[output features]");
    }
  }
  const Params params = paramsOf<precision>(setting);
  requireOk(vorta_linear_validate(&params));
}

std::vector<OutputAxis> outputShape(int32_t /*output*/, const Setting& /*setting*/) {
  return {{kInput, 0}, {kInput, 1}, {kWeight, 0}};
}

template <vorta_linear_precision precision>
size_t workspaceBytes(const Setting& setting) {
  const Params params = paramsOf<precision>(setting);
  size_t bytes = 0;
  requireOk(vorta_linear_workspace_size(&params, &bytes));
  return bytes;
}

// Says once per process and precision where products come from, or why they take the slow kernel.
template <vorta_linear_precision precision>
void reportProducts(const char* name) {
  static std::atomic<bool> isReported{false};
  if (isReported.exchange(true)) return;
  const char* reason = nullptr;
  const char* backend = vorta_linear_backend(precision, &reason);
  char message[1024];
  if (*reason != '\0') {
    std::snprintf(message, sizeof(message), "products take the slow kernel: %s", reason);
    logWarning(name, "enqueue", message);
  } else {
    const bool isOurs = std::strncmp(backend, "cublaslt", 8) != 0;
    std::snprintf(message, sizeof(message), "products are those of %s %s", backend,
                  isOurs ? "" : vorta_cublaslt_path());
    logInformation(name, "enqueue", message);
  }
}

template <vorta_linear_precision precision>
void enqueue(const Setting& setting, const Memory& memory) {
  Params params = paramsOf<precision>(setting);
  params.input = memory.inputs[kInput];
  params.weight = memory.inputs[kWeight];
  params.bias = memory.inputs[precision == VORTA_LINEAR_FP8 ? int32_t{kFp8Bias} : int32_t{kBias}];
  if (precision == VORTA_LINEAR_FP8) params.weight_scale = static_cast<const float*>(memory.inputs[kFp8WeightScale]);
  params.output = memory.outputs[kOutput];
  params.workspace = memory.workspace;
  // TensorRT gave what it was asked for at the profile's maximum, which is at least this.
  requireOk(vorta_linear_workspace_size(&params, &params.workspace_bytes));
  if (params.rows > 0) reportProducts<precision>(setting.record.op().fields.name);
  requireOk(vorta_linear_enqueue(&params, memory.stream));
}

template <vorta_linear_precision precision>
Operator tableOf(const char* name, const char* tag, std::vector<TensorSpec> inputs) {
  return {{name, "1", kLinearFields, countOf(kLinearFields), kChoices},
          tag,
          std::move(inputs),
          {{"output", Holds::kActivation}},
          check<precision>,
          outputShape,
          workspaceBytes<precision>,
          enqueue<precision>};
}

}  // namespace

const Operator& linear() {
  static const Operator op = tableOf<VORTA_LINEAR_SAME>(
      "Linear", "LI", {{"input", Holds::kActivation}, {"weight", Holds::kActivation}, {"bias", Holds::kActivation}});
  return op;
}

const Operator& fp8Linear() {
  static const Operator op = tableOf<VORTA_LINEAR_FP8>("Fp8Linear", "FL",
                                                       {{"input", Holds::kActivation},
                                                        {"weight", Holds::kFloat8},
                                                        {"weight_scale", Holds::kFloat32},
                                                        {"bias", Holds::kActivation}});
  return op;
}

}  // namespace vorta::plugin
