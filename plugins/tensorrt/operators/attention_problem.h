// SPDX-License-Identifier: Apache-2.0
//
// What the layers of routed attention on one GPU and on several share: the fields that pose the problem. Letters: B
// batch, N heads, D head dimension.
#ifndef VORTA_TENSORRT_OPERATORS_ATTENTION_PROBLEM_H_
#define VORTA_TENSORRT_OPERATORS_ATTENTION_PROBLEM_H_

#include "operator.h"
#include "vorta_trt/routed_attention.h"

namespace vorta::plugin {

// Choices of the string fields.
extern const Choices kAttentionChoices[];

inline constexpr int32_t kAttentionQuery = 0;  // the input query [B, tokens, N, D], followed by key and value

// The problem, as far as the fields state it.
vorta_routed_attention_problem attentionFields(const Setting& setting);

// The problem of a layer. An unknown number of heads becomes `leastHeads`; other unknown extents become their least
// valid values.
vorta_routed_attention_problem attentionProblem(const Setting& setting, int32_t leastHeads);

// Checks query, key, value, and the routes at input `routes`, [B, N]. `tokens` is the number of the query's tokens, and
// `expected` describes it in words. Throws PluginError.
void checkAttentionShapes(const Setting& setting, int32_t routes, int64_t tokens, const std::string& expected);

// Pointers and strides of the tensors that both layers have; `textLength` is the input of text_length.
vorta_routed_attention_tensors attentionTensors(const Setting& setting, const Memory& memory, int32_t routes,
                                                int32_t textLength);

}  // namespace vorta::plugin

#endif  // VORTA_TENSORRT_OPERATORS_ATTENTION_PROBLEM_H_
