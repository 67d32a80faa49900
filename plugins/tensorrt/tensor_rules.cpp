// SPDX-License-Identifier: Apache-2.0
#include "tensor_rules.h"

#include <cstring>
#include <limits>

#include "logger.h"
#include "vorta_trt/routed_attention.h"

namespace vorta::plugin {
namespace {

using trt::DataType;
using trt::Dims;

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

std::string shapeText(const std::vector<Wanted>& wanted) {
  std::string text;
  for (const Wanted& axis : wanted) {
    text += (text.empty() ? "" : ", ") + extentText(axis.first);
    if (axis.second != axis.first) text += " or " + extentText(axis.second);
  }
  return "[" + text + "]";
}

bool allows(const Wanted& wanted, int64_t extent) {
  return extent == kUnknown || wanted.first == kUnknown || wanted.second == kUnknown || extent == wanted.first ||
         extent == wanted.second;
}

// "a, b and c"
std::string listOf(const std::vector<std::string>& names) {
  std::string text;
  for (size_t i = 0; i < names.size(); ++i) {
    text += (i == 0 ? "" : i + 1 == names.size() ? " and " : ", ") + names[i];
  }
  return text;
}

std::string numbered(size_t count, const char* noun) {
  return std::to_string(count) + " " + noun + (count == 1 ? "" : "s");
}

// Why a tensor's type does not fit, and what to do.
std::string typeRule(const Operator& op, Holds holds) {
  switch (holds) {
    case Holds::kFloat32:
      return "must be float32; cast it in the network";
    case Holds::kInt32:
      return "must be int32; cast it in the network";
    case Holds::kWeight:
      return "must have the type of the activations, or be float32, all weights alike; export the model again";
    case Holds::kFloat8:
      return "must be float8 (e4m3), or int32 that hold four of them each; export the model again";
    case Holds::kPackedFloat8:
      return "must be int32 that hold four e4m3 each, as the plugins that quantise leave them; export the model again";
    default:
      break;
  }
  std::vector<std::string> names;
  for (const TensorSpec& input : op.inputs) {
    if (input.holds == Holds::kActivation) names.emplace_back(input.name);
  }
  return (names.size() == 1 ? names[0] + " must be float16 or bfloat16"
                            : listOf(names) + " must be all float16 or all bfloat16") +
         "; export the model with precision fp16 or bf16";
}

bool isThere(const TensorSpec& input, const Record& record) {
  return input.onlyIf == nullptr || integerField(record.op().fields, record.data(), input.onlyIf) > 0;
}

}  // namespace

int32_t inputCountOf(const Record& record) {
  int32_t count = 0;
  for (const TensorSpec& input : record.op().inputs) count += isThere(input, record) ? 1 : 0;
  return count;
}

void checkCounts(const Record& record, int32_t inputCount, int32_t outputCount) {
  if (inputCount == inputCountOf(record) && outputCount == outputCountOf(record)) return;
  const Operator& op = record.op();
  std::vector<std::string> names;
  std::string condition;
  for (const TensorSpec& input : op.inputs) {
    names.emplace_back(input.name);
    if (input.onlyIf != nullptr) {
      const std::string field = input.onlyIf;
      condition = "with " + field + " " + std::to_string(integerField(op.fields, record.data(), input.onlyIf)) + " ";
      names.back() += " if and only if " + field + " > 0";
    }
  }
  std::string all = listOf(names);
  if (!condition.empty()) all.insert(all.rfind(" and "), ",");
  throw PluginError(std::to_string(inputCount) + " inputs and " + std::to_string(outputCount) + " outputs: " +
                    condition + "there are " + numbered(static_cast<size_t>(inputCountOf(record)), "input") + " (" +
                    all + ") and " + numbered(op.outputs.size(), "output") + "; correct the node");
}

bool isActivationType(DataType type) { return type == DataType::kHALF || type == DataType::kBF16; }

int32_t kernelType(DataType type) { return type == DataType::kBF16 ? VORTA_BFLOAT16 : VORTA_FLOAT16; }

DataType activationType(const Record& record, const std::vector<DataType>& types) {
  const auto input = static_cast<size_t>(record.op().activationInput());
  return input < types.size() ? types[input] : DataType::kHALF;
}

DataType outputType(const Record& record, int32_t output, DataType activation) {
  switch (record.op().outputs[output].holds) {
    case Holds::kFloat32:
      return DataType::kFLOAT;
    case Holds::kPackedFloat8:
      return DataType::kINT32;
    default:
      return activation;
  }
}

bool fits(const Record& record, int32_t position, const std::vector<DataType>& types, DataType activation) {
  const std::vector<TensorSpec>& inputs = record.op().inputs;
  const int32_t outputOffset = inputCountOf(record);
  const Holds holds =
      position < outputOffset ? inputs[position].holds : record.op().outputs[position - outputOffset].holds;
  const DataType type = types[position];
  switch (holds) {
    case Holds::kFloat32:
      return type == DataType::kFLOAT;
    case Holds::kInt32:
    case Holds::kPackedFloat8:
      return type == DataType::kINT32;
    case Holds::kWeight:
      for (int32_t i = 0; i < position; ++i) {
        if (inputs[i].holds == Holds::kWeight && types[i] != type) return false;
      }
      return type == DataType::kFLOAT || (isActivationType(type) && type == activation);
    case Holds::kFloat8:
      return type == DataType::kFP8 || type == DataType::kINT32;
    default:
      return isActivationType(type) && type == activation;
  }
}

void checkTypes(const Record& record, const DataType* inputTypes) {
  const int32_t count = inputCountOf(record);
  const std::vector<DataType> types(inputTypes, inputTypes + count);
  for (int32_t i = 0; i < count; ++i) {
    const TensorSpec& input = record.op().inputs[i];
    if (!fits(record, i, types, activationType(record, types))) {
      throw PluginError(std::string(input.name) + " is " + typeName(inputTypes[i]) + ": " +
                        typeRule(record.op(), input.holds));
    }
  }
}

void requireShape(const Setting& setting, int32_t input, const std::vector<Wanted>& wanted,
                  const std::string& expected) {
  const Dims& dims = setting.inputs[input];
  bool fitting = dims.nbDims == static_cast<int32_t>(wanted.size());
  for (int32_t i = 0; fitting && i < dims.nbDims; ++i) fitting = allows(wanted[i], dims.d[i]);
  if (!fitting) {
    throw PluginError(std::string(setting.record.op().inputs[input].name) + " " + shapeText(dims) +
                      ": must have shape " + expected + " = " + shapeText(wanted) +
                      "; correct the input, or export for this size");
  }
}

std::vector<Wanted> wantedLike(const Dims& dims) { return {dims.d, dims.d + dims.nbDims}; }

Dims atLargest(Dims dims, const Dims& largest) {
  for (int32_t axis = 0; axis < dims.nbDims; ++axis) {
    if (dims.d[axis] == kUnknown) dims.d[axis] = largest.d[axis];
  }
  return dims;
}

int32_t extentOr(int64_t extent, int32_t least) {
  if (extent == kUnknown) return least;
  if (extent < 0 || extent > std::numeric_limits<int32_t>::max()) {
    throw PluginError("extent " + std::to_string(extent) + ": must lie between 0 and 2^31-1; correct the input shape");
  }
  return static_cast<int32_t>(extent);
}

}  // namespace vorta::plugin
