// SPDX-License-Identifier: Apache-2.0
//
// The operators by name, and what their tables share.
#ifndef VORTA_TENSORRT_OPERATORS_OPERATORS_H_
#define VORTA_TENSORRT_OPERATORS_OPERATORS_H_

#include "logger.h"
#include "operator.h"
#include "vorta_trt/routed_attention.h"

namespace vorta::plugin {

inline constexpr int64_t kPerInt32 = 4;  // e4m3 in an int32

const Operator& routedAttention();
const Operator& ulyssesAttention();
const Operator& gatherTokens();
const Operator& crossAttention();
const Operator& headNorm();
const Operator& qkNormRotary();
const Operator& normModulate();
const Operator& residualNormModulate();
const Operator& quantize();
const Operator& normModulateQuantize();
const Operator& residualNormModulateQuantize();
const Operator& linear();
const Operator& joinedLinear();
const Operator& joinedQuantize();
const Operator& fp8Linear();

// Throws PluginError with the C API's message unless its call succeeded.
inline void requireOk(vorta_status status) {
  if (status != VORTA_OK) throw PluginError(vorta_last_error());
}

// The first four axes of input 0: the shape of an attention's output.
std::vector<OutputAxis> attentionShape(int32_t output, const Setting& setting);

// Size of the scratch memory of the call that `paramsOf` makes, as `ask`, a function of the C API, states it.
template <auto paramsOf, auto ask>
size_t askedWorkspaceBytes(const Setting& setting) {
  const auto params = paramsOf(setting);
  size_t bytes = 0;
  requireOk(ask(&params, &bytes));
  return bytes;
}

// The shape of quantised activations [B, X, E/4] for input 0 [B, X, E]. E is a constant of every network.
std::vector<OutputAxis> packedShape(const Setting& setting);

// Throws PluginError unless the features of an input [B, X, E] are a constant.
void requireConstantFeatures(const Setting& setting, int32_t input = 0);

// Strides of a row-major tensor along every axis but the last, in elements. `dims` has one axis more than `strides`.
template <int32_t count>
void setRowMajor(const trt::Dims& dims, int64_t (&strides)[count]) {
  int64_t stride = 1;
  for (int32_t axis = count - 1; axis >= 0; --axis) strides[axis] = stride *= dims.d[axis + 1];
}

}  // namespace vorta::plugin

#endif  // VORTA_TENSORRT_OPERATORS_OPERATORS_H_
