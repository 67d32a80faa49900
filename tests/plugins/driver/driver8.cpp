// SPDX-License-Identifier: Apache-2.0
//
// Plays TensorRT 8.6 for one plugin library, as driver.cpp plays the newer ones; same arguments, same "key: value"
// lines.
//
//   driver8 LIBRARY VERSION COMMAND [operator=NAME] [field=NAME:TYPE:VALUES] [input=TYPE:EXTENTS] ...
//   [memory=ADDRESS,...]
#include <dlfcn.h>

#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "arguments.h"
#include "fake_tensorrt.h"
#include "tensorrt8_api.h"

namespace driver {
namespace {

namespace trt8 = vorta::trt8;

int32_t libraryVersion = 0;

struct Destroy {
  void operator()(trt8::IPluginV2* plugin) const { plugin->destroy(); }
};
using Plugin = std::unique_ptr<trt8::IPluginV2DynamicExt, Destroy>;

// Only a plugin that says so is of the class with dynamic shapes: the upper byte of its version.
Plugin dynamic(trt8::IPluginV2* plugin) {
  const bool isDynamic = plugin != nullptr && plugin->getTensorRTVersion() >> 24 == 3;
  if (plugin != nullptr && !isDynamic) fail("the plugin is not an IPluginV2DynamicExt");
  return Plugin(static_cast<trt8::IPluginV2DynamicExt*>(plugin));
}

trt8::DataType narrowed(trt::DataType type) { return static_cast<trt8::DataType>(static_cast<int32_t>(type)); }

trt8::Dims narrowed(const trt::Dims& wide) {
  trt8::Dims dims{wide.nbDims, {}};
  for (int32_t axis = 0; axis < wide.nbDims; ++axis) dims.d[axis] = static_cast<int32_t>(wide.d[axis]);
  return dims;
}

trt8::PluginTensorDesc narrowed(const trt::PluginTensorDesc& desc) {
  return {narrowed(desc.dims), narrowed(desc.type), trt8::TensorFormat::kLINEAR, 1.0F};
}

struct Session {
  trt8::IPluginCreator* creator;
  Fields fields;
  Inputs inputs;
  Plugin plugin;

  int32_t outputs() const { return plugin->getNbOutputs(); }
  std::vector<trt8::PluginTensorDesc> descs() const {  // the last ones are the outputs
    std::vector<trt8::PluginTensorDesc> narrow;
    for (const trt::PluginTensorDesc& desc : inputs.runtimeDescs(outputs())) narrow.push_back(narrowed(desc));
    return narrow;
  }
  std::vector<trt8::DynamicPluginTensorDesc> buildDescs() const {
    std::vector<trt8::DynamicPluginTensorDesc> narrow;
    for (const trt::DynamicPluginTensorDesc& tensor : inputs.buildDescs(outputs())) {
      narrow.push_back({narrowed(tensor.desc), narrowed(tensor.min), narrowed(tensor.max)});
    }
    return narrow;
  }
};

std::string bytesOf(const trt8::IPluginV2& plugin) {
  std::string bytes(plugin.getSerializationSize(), '\0');
  plugin.serialize(bytes.data());
  return bytes;
}

// --- Commands ------------------------------------------------------------------------------------------------------

void create(Session& session) {
  std::vector<trt8::PluginField> fields;
  for (const trt::PluginField& field : session.fields.fields) {
    const auto type = static_cast<trt8::PluginFieldType>(static_cast<int32_t>(field.type));
    fields.emplace_back(field.name, field.data, type, field.length);
  }
  const trt8::PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
  session.plugin = dynamic(session.creator->createPlugin("layer", &collection));
  print("created", session.plugin ? "yes" : "no");
}

void createFromNull(Session& session) {
  session.plugin = dynamic(session.creator->createPlugin(nullptr, nullptr));
  print("created", session.plugin ? "yes" : "no");
}

void describeCreator(Session& session) {
  print("creator", std::string(session.creator->getPluginNamespace()) + "::" + session.creator->getPluginName() + " " +
                       session.creator->getPluginVersion());
  const trt8::PluginFieldCollection* names = session.creator->getFieldNames();
  for (int32_t i = 0; i < names->nbFields; ++i) {
    const trt8::PluginField& field = names->fields[i];
    print("field", std::string(field.name) + " " + std::to_string(static_cast<int>(field.type)) + " " +
                       std::to_string(field.length));
  }
}

// Network -> engine -> execution context: cloned, serialized, read back, cloned again; and bytes that are no plugin.
void roundTrip(Session& session) {
  create(session);
  if (!session.plugin) return;
  session.plugin->setPluginNamespace("elsewhere");
  Plugin clone = dynamic(session.plugin->clone());
  session.plugin.reset();  // the clone has to stand on its own
  const std::string bytes = bytesOf(*clone);
  Plugin restored = dynamic(session.creator->deserializePlugin("layer", bytes.data(), bytes.size()));
  Plugin attached = dynamic(restored->clone());
  restored.reset();
  print("bytes", std::to_string(bytes.size()));
  std::string words;
  for (size_t offset = 0; offset < bytes.size(); offset += 4) {
    int32_t word;
    std::memcpy(&word, bytes.data() + offset, 4);
    words += (offset == 0 ? "" : " ") + std::to_string(word);
  }
  print("words", words);
  print("same bytes", bytesOf(*attached) == bytes ? "yes" : "no");
  print("clone", std::string(clone->getPluginNamespace()) + "::" + clone->getPluginType());
  print("attached", std::string(attached->getPluginNamespace()) + "::" + attached->getPluginType() + " " +
                        attached->getPluginVersion());
  print("outputs", std::to_string(attached->getNbOutputs()));
  std::string damaged = bytes;
  damaged[0] = 'x';
  const bool refused = session.creator->deserializePlugin("layer", damaged.data(), damaged.size()) == nullptr &&
                       session.creator->deserializePlugin("layer", bytes.data(), bytes.size() - 1) == nullptr &&
                       session.creator->deserializePlugin("layer", nullptr, 0) == nullptr;
  print("refuses other bytes", refused ? "yes" : "no");
}

// One line per position: the types that fit there, given what stands before it.
void formats(Session& session) {
  std::vector<trt8::PluginTensorDesc> tensors = session.descs();
  for (int32_t position = 0; position < static_cast<int32_t>(tensors.size()); ++position) {
    const trt8::PluginTensorDesc original = tensors[position];
    std::string fitting;
    for (const auto& [name, type] : kDataTypes) {
      for (trt8::TensorFormat format : {trt8::TensorFormat::kLINEAR, trt8::TensorFormat::kHWC8}) {
        tensors[position].type = narrowed(type);
        tensors[position].format = format;
        if (session.plugin->supportsFormatCombination(position, tensors.data(), session.inputs.count(),
                                                      session.outputs())) {
          fitting += name + (format == trt8::TensorFormat::kLINEAR ? "/linear " : "/hwc8 ");
        }
      }
    }
    tensors[position] = original;
    print(("position " + std::to_string(position)).c_str(), fitting);
  }
}

struct Extent8 final : trt8::apiv::VDimensionExpr {
  int32_t value;
  explicit Extent8(int32_t extent) : value(extent) {}
  bool isConstant() const override { return value >= 0; }
  int32_t getConstantValue() const override { return value; }
};
struct ExtentHandle8 final : trt8::IDimensionExpr {
  Extent8 implementation;
  explicit ExtentHandle8(int32_t extent) : implementation(extent) { mImpl = &implementation; }
  ~ExtentHandle8() noexcept override = default;
};

struct Builder8 final : trt8::apiv::VExprBuilder {
  std::vector<std::unique_ptr<ExtentHandle8>> constants;
  const trt8::IDimensionExpr* constant(int32_t value) override {
    return constants.emplace_back(std::make_unique<ExtentHandle8>(value)).get();
  }
};
struct BuilderHandle8 final : trt8::IExprBuilder {
  Builder8 implementation;
  BuilderHandle8() { mImpl = &implementation; }
  ~BuilderHandle8() noexcept override = default;
};

void outputShapes(Session& session) {
  std::vector<std::unique_ptr<ExtentHandle8>> handles;
  std::vector<trt8::DimsExprs> inputs;
  for (const trt::Dims& shape : session.inputs.shapes) {
    trt8::DimsExprs expressions{shape.nbDims, {}};
    for (int32_t axis = 0; axis < shape.nbDims; ++axis) {
      handles.push_back(std::make_unique<ExtentHandle8>(static_cast<int32_t>(shape.d[axis])));
      expressions.d[axis] = handles.back().get();
    }
    inputs.push_back(expressions);
  }
  BuilderHandle8 builder;
  for (int32_t index = 0; index < session.outputs(); ++index) {
    const trt8::DimsExprs output =
        session.plugin->getOutputDimensions(index, inputs.data(), session.inputs.count(), builder);
    std::string shape;
    for (int32_t axis = 0; axis < output.nbDims; ++axis) {
      shape += (axis == 0 ? "" : ",") +
               (output.d[axis]->isConstant() ? std::to_string(output.d[axis]->getConstantValue()) : "?");
    }
    print("rank", std::to_string(output.nbDims));
    print("shape", shape);
    const std::vector<trt8::DataType> floats(session.inputs.count(), trt8::DataType::kFLOAT);  // as TensorRT 8 asks
    const trt8::DataType type = session.plugin->getOutputDataType(index, floats.data(), session.inputs.count());
    print("type", std::to_string(static_cast<int>(type)));
  }
}

void configurePlugin(Session& session, const std::vector<trt8::DynamicPluginTensorDesc>& tensors) {
  const int32_t count = session.inputs.count();
  session.plugin->configurePlugin(tensors.data(), count, tensors.data() + count, session.outputs());
}

void configure(Session& session) {
  configurePlugin(session, session.buildDescs());
  const auto tensors = session.descs();
  const int32_t count = session.inputs.count();
  const size_t bytes =
      session.plugin->getWorkspaceSize(tensors.data(), count, tensors.data() + count, session.outputs());
  print("workspace", std::to_string(bytes));
}

// As TensorRT times a layer while it builds. The shapes are configured before, as an execution context does it, too:
// nothing is promised of the bounds then.
void rehearse(Session& session) {
  std::vector<trt8::DynamicPluginTensorDesc> configured;
  for (const trt8::PluginTensorDesc& desc : session.descs()) configured.push_back({desc, {0, {}}, {0, {}}});
  configurePlugin(session, configured);
  const auto tensors = session.descs();
  const int32_t count = session.inputs.count();
  const Memory memory(session.inputs.memory, count, session.outputs());
  const int32_t result = session.plugin->enqueue(tensors.data(), tensors.data() + count, memory.inputs.data(),
                                                 memory.outputs.data(), memory.workspace, memory.stream);
  print("result", std::to_string(result));
}

// The layer of an engine.
void enqueue(Session& session) {
  const std::string bytes = bytesOf(*session.plugin);
  session.plugin = dynamic(session.creator->deserializePlugin("layer", bytes.data(), bytes.size()));
  rehearse(session);
}

}  // namespace
}  // namespace driver

extern "C" __attribute__((visibility("default"))) int32_t getInferLibVersion() { return driver::libraryVersion; }

int main(int argumentCount, char** arguments) {
  using namespace driver;
  if (argumentCount < 4) fail("usage: driver8 LIBRARY VERSION COMMAND [operator=...] [field=...] [input=...]");
  libraryVersion = static_cast<int32_t>(std::strtol(arguments[2], nullptr, 10));
  void* library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) fail(dlerror());
  const auto setLoggerFinder = reinterpret_cast<void (*)(void*)>(dlsym(library, "setLoggerFinder"));
  using GetPluginCreators = trt8::IPluginCreator* const* (*)(int32_t&);
  const auto getPluginCreators = reinterpret_cast<GetPluginCreators>(dlsym(library, "getPluginCreators"));
  if (setLoggerFinder == nullptr || getPluginCreators == nullptr) fail("the library lacks TensorRT 8's entry points");
  static PlainFinder finder;  // outlives this function where it is called more than once
  if (libraryVersion != 0) setLoggerFinder(&finder);

  int32_t creatorCount = 0;
  trt8::IPluginCreator* const* creators = getPluginCreators(creatorCount);
  Session session{creatorOf<trt8::IPluginCreator>(argumentCount, arguments, creators, creatorCount), {}, {}, nullptr};
  readArguments(argumentCount, arguments, session.fields, session.inputs);
  const std::map<std::string, std::function<void(Session&)>> onCreator = {{"creator", describeCreator},
                                                                          {"create", create},
                                                                          {"create-from-null", createFromNull},
                                                                          {"round-trip", roundTrip}};
  const std::map<std::string, std::function<void(Session&)>> onPlugin = {{"formats", formats},
                                                                         {"output-shapes", outputShapes},
                                                                         {"configure", configure},
                                                                         {"enqueue", enqueue},
                                                                         {"rehearse", rehearse}};
  const std::string command = arguments[3];
  if (onCreator.count(command) == 1) {
    onCreator.at(command)(session);
  } else if (onPlugin.count(command) == 1) {
    create(session);
    if (session.plugin) onPlugin.at(command)(session);
  } else {
    fail("command " + command);
  }
  session.plugin.reset();
  dlclose(library);
  print("done", "yes");
  return 0;
}
