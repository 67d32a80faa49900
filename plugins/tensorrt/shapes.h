// SPDX-License-Identifier: Apache-2.0
//
// Inputs and outputs of the operator and the rules on their types and shapes. Letters: B batch, S video tokens, T text
// tokens, N heads, D head dimension.
#ifndef VORTA_TENSORRT_SHAPES_H_
#define VORTA_TENSORRT_SHAPES_H_

#include <vector>

#include "fields.h"

namespace vorta::plugin {

enum Input : int32_t {
  kQuery = 0,       // [B, S+T, N, D]
  kKey = 1,         // [B, S+T, N, D]
  kValue = 2,       // [B, S+T, N, D]
  kRoutes = 3,      // [B, N], int32
  kTextLength = 4,  // [B], int32, present if and only if T > 0
};
enum Output : int32_t { kAttention = 0 };  // [B, S+T, N, D]

inline constexpr int32_t kOutputCount = 1;
inline constexpr int64_t kUnknown = -1;  // an extent that TensorRT does not know yet

// 5 with text, else 4.
int32_t inputCountOf(const Attributes& attributes);

// Throws PluginError unless the counts fit.
void checkCounts(const Attributes& attributes, int32_t inputCount, int32_t outputCount);

// Throws PluginError unless query, key and value are all fp16 or all bf16, and routes and text_length int32.
void checkTypes(const Attributes& attributes, const trt::DataType* inputTypes);

// Whether the kernels take `type` for query, key, value and output.
bool isActivationType(trt::DataType type);

// The problem of a query of shape `query` = [B, S+T, N, D], unchecked; for a layer whose shapes were checked before.
vorta_routed_attention_problem problemOf(const Attributes& attributes, trt::DataType type, const trt::Dims& query);

// Checks the input shapes against each other, the attributes and the limits of the kernels, and gives the problem that
// they pose. Extents that are kUnknown pass, and stand as their least valid value in the problem; no inputs at all
// check the attributes alone. Throws PluginError.
vorta_routed_attention_problem checkedProblemOf(const Attributes& attributes, trt::DataType type,
                                                const std::vector<trt::Dims>& inputs);

}  // namespace vorta::plugin

#endif  // VORTA_TENSORRT_SHAPES_H_
