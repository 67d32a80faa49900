// SPDX-License-Identifier: Apache-2.0
//
// The driver's arguments: operator=NAME, field=NAME:TYPE:VALUES, input=TYPE:EXTENTS and memory=ADDRESS,..., as
// TensorRT's structures.
#ifndef VORTA_TESTS_ARGUMENTS_H_
#define VORTA_TESTS_ARGUMENTS_H_

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "tensorrt_api.h"

namespace driver {

namespace trt = vorta::trt;

[[noreturn]] inline void fail(const std::string& message) {
  std::fprintf(stderr, "driver: %s\n", message.c_str());
  std::exit(2);
}

inline std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::stringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

inline const std::map<std::string, trt::PluginFieldType> kFieldTypes = {
    {"float16", trt::PluginFieldType::kFLOAT16}, {"float32", trt::PluginFieldType::kFLOAT32},
    {"float64", trt::PluginFieldType::kFLOAT64}, {"int8", trt::PluginFieldType::kINT8},
    {"int32", trt::PluginFieldType::kINT32},     {"int64", trt::PluginFieldType::kINT64},
    {"string", trt::PluginFieldType::kCHAR},     {"unknown", trt::PluginFieldType::kUNKNOWN},
};
inline const std::map<std::string, trt::DataType> kDataTypes = {
    {"float32", trt::DataType::kFLOAT}, {"float16", trt::DataType::kHALF}, {"bfloat16", trt::DataType::kBF16},
    {"int8", trt::DataType::kINT8},     {"int32", trt::DataType::kINT32},  {"int64", trt::DataType::kINT64},
    {"bool", trt::DataType::kBOOL},     {"float8", trt::DataType::kFP8},
};

// Owns names and data; "string0" is a string whose terminating zero is counted, "null" a field without data.
struct Fields {
  std::vector<std::unique_ptr<std::string>> storage;
  std::vector<trt::PluginField> fields;
  trt::PluginFieldCollection collection;

  template <typename Item>
  static std::string bytesOf(const std::vector<std::string>& items) {
    std::string bytes;
    for (const std::string& text : items) {
      const Item item = static_cast<Item>(std::strtod(text.c_str(), nullptr));
      bytes.append(reinterpret_cast<const char*>(&item), sizeof(item));
    }
    return bytes;
  }

  void add(const std::string& text) {
    const std::vector<std::string> parts = split(text, ':');
    if (parts.size() < 2) fail("field=" + text);
    const std::string values = parts.size() > 2 ? parts[2] : "";
    const std::vector<std::string> items = split(values, ',');
    const std::string type = parts[1] == "string0" ? "string" : parts[1] == "null" ? "int32" : parts[1];
    if (kFieldTypes.count(type) == 0) fail("type " + type);
    std::string data = values;
    if (type == "int32") data = bytesOf<int32_t>(items);
    if (type == "int64") data = bytesOf<int64_t>(items);
    if (type == "float32") data = bytesOf<float>(items);
    if (type == "float64") data = bytesOf<double>(items);
    if (parts[1] == "string0") data.push_back('\0');
    const auto length = static_cast<int32_t>(type == "string" ? data.size() : items.size());
    storage.push_back(std::make_unique<std::string>(parts[0]));
    const char* name = storage.back()->c_str();
    storage.push_back(std::make_unique<std::string>(data));
    const void* address = parts[1] == "null" ? nullptr : storage.back()->data();
    fields.emplace_back(name, address, kFieldTypes.at(type), length);
    collection = {static_cast<int32_t>(fields.size()), fields.data()};
  }
};

struct Inputs {
  std::string memory;
  std::vector<trt::DataType> types;
  std::vector<trt::Dims> shapes;

  void add(const std::string& text) {
    const std::vector<std::string> parts = split(text, ':');
    if (parts.empty() || kDataTypes.count(parts[0]) == 0) fail("input=" + text);
    trt::Dims dims{0, {}};
    for (const std::string& extent : split(parts.size() > 1 ? parts[1] : "", ',')) {
      dims.d[dims.nbDims++] = std::strtoll(extent.c_str(), nullptr, 10);
    }
    types.push_back(kDataTypes.at(parts[0]));
    shapes.push_back(dims);
  }
  int32_t count() const { return static_cast<int32_t>(types.size()); }
  trt::PluginTensorDesc desc(int32_t i) const { return {shapes[i], types[i], trt::TensorFormat::kLINEAR, 1.0F}; }

  std::vector<trt::PluginTensorDesc> runtimeDescs(int32_t outputs) const {  // the outputs, last, are like input 0
    std::vector<trt::PluginTensorDesc> descs;
    for (int32_t i = 0; i < count(); ++i) descs.push_back(desc(i));
    for (int32_t i = 0; i < outputs && count() > 0; ++i) descs.push_back(desc(0));
    return descs;
  }
  std::vector<trt::DynamicPluginTensorDesc> buildDescs(int32_t outputs) const {  // unknown extents: at most 2
    std::vector<trt::DynamicPluginTensorDesc> descs;
    for (const trt::PluginTensorDesc& desc : runtimeDescs(outputs)) {
      trt::Dims most = desc.dims;
      for (int32_t axis = 0; axis < most.nbDims; ++axis) most.d[axis] = most.d[axis] < 0 ? 2 : most.d[axis];
      descs.push_back({desc, most, most, most});
    }
    return descs;
  }
};

// Of `creators`, the one of the operator that operator=... names; without it RoutedAttention's.
template <typename Creator, typename Interface>
Creator* creatorOf(int count, char** arguments, Interface* const* creators, int32_t creatorCount) {
  std::string name = "RoutedAttention";
  for (int i = 4; i < count; ++i) {
    if (const std::string argument = arguments[i]; argument.rfind("operator=", 0) == 0) name = argument.substr(9);
  }
  for (int32_t i = 0; i < creatorCount; ++i) {
    auto* creator = static_cast<Creator*>(creators[i]);
    if (name == creator->getPluginName()) return creator;
  }
  fail("no creator of " + name);
}

// What an enqueue is given: made-up addresses, inputs from 0x1000 and outputs from 0x100000 on, for a library that only
// records its calls; or those of memory=, inputs, outputs and workspace, for one that computes, on the default stream.
struct Memory {
  std::vector<const void*> inputs;
  std::vector<void*> outputs;
  void* workspace = reinterpret_cast<void*>(0x200000);
  cudaStream_t stream = reinterpret_cast<cudaStream_t>(0x300000);

  Memory(const std::string& given, int32_t inputCount, int32_t outputCount) {
    const std::vector<std::string> addresses = split(given, ',');
    const auto address = [&](size_t index, uintptr_t madeUp) {
      if (addresses.empty()) return reinterpret_cast<void*>(madeUp);
      if (index >= addresses.size()) fail("memory= has too few addresses");
      return reinterpret_cast<void*>(static_cast<uintptr_t>(std::strtoull(addresses[index].c_str(), nullptr, 10)));
    };
    for (int32_t i = 0; i < inputCount; ++i) inputs.push_back(address(i, uintptr_t{0x1000} * (i + 1)));
    for (int32_t i = 0; i < outputCount; ++i) {
      outputs.push_back(address(inputCount + i, 0x100000 + uintptr_t{0x10000} * i));
    }
    if (!addresses.empty()) stream = nullptr;
    workspace = address(inputCount + outputCount, 0x200000);
  }
};

// Reads field=... and input=... from the fifth argument on.
inline void readArguments(int count, char** arguments, Fields& fields, Inputs& inputs) {
  for (int i = 4; i < count; ++i) {
    const std::string argument = arguments[i];
    if (argument.rfind("field=", 0) == 0) {
      fields.add(argument.substr(6));
    } else if (argument.rfind("input=", 0) == 0) {
      inputs.add(argument.substr(6));
    } else if (argument.rfind("memory=", 0) == 0) {
      inputs.memory = argument.substr(7);
    } else if (argument.rfind("operator=", 0) != 0) {
      fail("argument " + argument);
    }
  }
}

}  // namespace driver

#endif  // VORTA_TESTS_ARGUMENTS_H_
