// SPDX-License-Identifier: Apache-2.0
#include "shapes.h"

#include <limits>
#include <string>

#include "logger.h"

namespace vorta::plugin {
namespace {

using trt::DataType;
using trt::Dims;

constexpr const char* kInputNames[] = {"query", "key", "value", "routes", "text_length"};

// Least values that every problem accepts; they stand in for extents that are not known yet.
constexpr int64_t kLeastExtent = 1;
constexpr int64_t kLeastHeadDim = 8;

const char* typeName(DataType type) {
  switch (type) {
    case DataType::kFLOAT:
      return "float32";
    case DataType::kHALF:
      return "float16";
    case DataType::kINT8:
      return "int8";
    case DataType::kINT32:
      return "int32";
    case DataType::kBOOL:
      return "bool";
    case DataType::kBF16:
      return "bfloat16";
    case DataType::kINT64:
      return "int64";
    case DataType::kFP8:
      return "float8";
    default:
      return "another type";
  }
}

std::string extentText(int64_t extent) { return extent == kUnknown ? "?" : std::to_string(extent); }

std::string shapeText(const Dims& dims) {
  std::string text = "[";
  for (int32_t i = 0; i < dims.nbDims; ++i) text += (i == 0 ? "" : ", ") + extentText(dims.d[i]);
  return text + "]";
}

// What an input must look like; `expected` is in letters, for the message.
void requireShape(int32_t input, const Dims& dims, const Dims& wanted, const std::string& expected) {
  bool fits = dims.nbDims == wanted.nbDims;
  for (int32_t i = 0; fits && i < dims.nbDims; ++i) {
    fits = dims.d[i] == wanted.d[i] || dims.d[i] == kUnknown || wanted.d[i] == kUnknown;
  }
  if (!fits) {
    throw PluginError(std::string(kInputNames[input]) + " " + shapeText(dims) + ": must have shape " + expected +
                      " = " + shapeText(wanted) + "; correct the input, or export for this size");
  }
}

// `extent`, or `least` where it is not known yet.
int64_t extentOr(int64_t extent, int64_t least) {
  if (extent == kUnknown) return least;
  if (extent < 0 || extent > std::numeric_limits<int32_t>::max()) {
    throw PluginError("extent " + std::to_string(extent) + ": must lie between 0 and 2^31-1; correct the input shape");
  }
  return extent;
}

}  // namespace

int32_t inputCountOf(const Attributes& attributes) {
  return attributes.textTokens() > 0 ? kTextLength + 1 : kTextLength;
}

void checkCounts(const Attributes& attributes, int32_t inputCount, int32_t outputCount) {
  if (inputCount != inputCountOf(attributes) || outputCount != kOutputCount) {
    throw PluginError(std::to_string(inputCount) + " inputs and " + std::to_string(outputCount) +
                      " outputs: with text_tokens " + std::to_string(attributes.textTokens()) + " there are " +
                      std::to_string(inputCountOf(attributes)) +
                      " inputs (query, key, value, routes, and text_length if and only if text_tokens > 0) and 1 "
                      "output; correct the node");
  }
}

bool isActivationType(DataType type) { return type == DataType::kHALF || type == DataType::kBF16; }

void checkTypes(const Attributes& attributes, const DataType* inputTypes) {
  for (int32_t i = 0; i < inputCountOf(attributes); ++i) {
    const bool fits = i >= kRoutes ? inputTypes[i] == DataType::kINT32
                                   : isActivationType(inputTypes[i]) && inputTypes[i] == inputTypes[kQuery];
    if (!fits) {
      throw PluginError(std::string(kInputNames[i]) + " is " + typeName(inputTypes[i]) +
                        (i >= kRoutes ? ": must be int32; cast it in the network"
                                      : ": query, key and value must be all float16 or all bfloat16; export the model "
                                        "with precision fp16 or bf16"));
    }
  }
}

vorta_routed_attention_problem problemOf(const Attributes& attributes, DataType type, const Dims& query) {
  vorta_routed_attention_problem problem = attributes.problem;
  problem.struct_size = sizeof(problem);
  problem.dtype = type == DataType::kBF16 ? VORTA_BFLOAT16 : VORTA_FLOAT16;
  problem.batch = static_cast<int32_t>(query.d[0]);
  problem.heads = static_cast<int32_t>(query.d[2]);
  problem.head_dim = static_cast<int32_t>(query.d[3]);
  return problem;
}

vorta_routed_attention_problem checkedProblemOf(const Attributes& attributes, DataType type,
                                                const std::vector<Dims>& inputs) {
  Dims query{4, {kUnknown, kUnknown, kUnknown, kUnknown}};
  if (!inputs.empty()) {
    query.d[1] = attributes.tokens();
    requireShape(kQuery, inputs[kQuery], query,
                 "[batch, grid tokens " + std::to_string(attributes.videoTokens()) + " + text_tokens " +
                     std::to_string(attributes.textTokens()) + ", heads, head dimension]");
    query = inputs[kQuery];
    for (int32_t input : {kKey, kValue}) requireShape(input, inputs[input], query, "of query");
    requireShape(kRoutes, inputs[kRoutes], Dims{2, {query.d[0], query.d[2]}}, "[batch, heads]");
    if (attributes.textTokens() > 0) {
      requireShape(kTextLength, inputs[kTextLength], Dims{1, {query.d[0]}}, "[batch]");
    }
  }
  query.d[0] = extentOr(query.d[0], kLeastExtent);
  query.d[2] = extentOr(query.d[2], kLeastExtent);
  query.d[3] = extentOr(query.d[3], kLeastHeadDim);
  const vorta_routed_attention_problem problem = problemOf(attributes, type, query);
  if (vorta_routed_attention_validate(&problem) != VORTA_OK) throw PluginError(vorta_last_error());
  return problem;
}

}  // namespace vorta::plugin
