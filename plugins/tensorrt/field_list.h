// SPDX-License-Identifier: Apache-2.0
//
// The fields of every operator, in order: what an ONNX node carries as attributes, what an engine stores, and (with
// the headers of the C API) what VORTA_ABI_HASH is made from. A change of meaning raises the operator's version, which
// stands in operators/.
#ifndef VORTA_TENSORRT_FIELD_LIST_H_
#define VORTA_TENSORRT_FIELD_LIST_H_

#include "tensorrt_api.h"

namespace vorta::plugin {

inline constexpr char kOperatorNamespace[] = "vorta";

enum class Presence { kRequired, kOptional };

struct FieldSpec {
  const char* name;
  trt::PluginFieldType type;
  int32_t length;  // items; 0: a string of any length
  Presence presence;
};

// UlyssesAttention; RoutedAttention has all but the last.
inline constexpr FieldSpec kAttentionFields[] = {
    {"grid", trt::PluginFieldType::kINT32, 3, Presence::kRequired},
    {"tile", trt::PluginFieldType::kINT32, 3, Presence::kRequired},
    {"window", trt::PluginFieldType::kINT32, 3, Presence::kRequired},
    {"bucket", trt::PluginFieldType::kINT32, 3, Presence::kRequired},
    {"keep", trt::PluginFieldType::kINT32, 1, Presence::kRequired},
    {"coreset_keys", trt::PluginFieldType::kCHAR, 0, Presence::kRequired},
    {"text_tokens", trt::PluginFieldType::kINT32, 1, Presence::kRequired},
    {"scale", trt::PluginFieldType::kFLOAT32, 1, Presence::kOptional},  // absent or 0: 1/sqrt(head dimension)
    {"attention_precision", trt::PluginFieldType::kCHAR, 0, Presence::kOptional},  // absent: "same"
    {"ranks", trt::PluginFieldType::kINT32, 1, Presence::kRequired},
};

inline constexpr FieldSpec kGatherTokensFields[] = {
    {"tokens", trt::PluginFieldType::kINT32, 1, Presence::kRequired},
    {"ranks", trt::PluginFieldType::kINT32, 1, Presence::kRequired},
};

// HeadNorm and QKNormRotary.
inline constexpr FieldSpec kHeadNormFields[] = {
    {"heads", trt::PluginFieldType::kINT32, 1, Presence::kRequired},
    {"epsilon", trt::PluginFieldType::kFLOAT32, 1, Presence::kRequired},
};

// NormModulate and ResidualNormModulate, also those that quantise.
inline constexpr FieldSpec kNormModulateFields[] = {
    {"epsilon", trt::PluginFieldType::kFLOAT32, 1, Presence::kRequired},
    {"first_tokens", trt::PluginFieldType::kINT32, 1, Presence::kOptional},  // absent: 0
};

// Linear, JoinedLinear and Fp8Linear.
inline constexpr FieldSpec kLinearFields[] = {
    {"activation", trt::PluginFieldType::kCHAR, 0, Presence::kOptional},  // absent: "none"
};

inline constexpr FieldSpec kCrossAttentionFields[] = {
    {"scale", trt::PluginFieldType::kFLOAT32, 1, Presence::kOptional},  // absent or 0: 1/sqrt(head dimension)
};

template <int32_t count>
constexpr int32_t countOf(const FieldSpec (&)[count]) {
  return count;
}

inline constexpr int32_t kRoutedAttentionFieldCount = countOf(kAttentionFields) - 1;

}  // namespace vorta::plugin

#endif  // VORTA_TENSORRT_FIELD_LIST_H_
