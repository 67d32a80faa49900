// SPDX-License-Identifier: Apache-2.0
//
// Plays TensorRT for one plugin library: loads it, hands it a logger, makes a plugin from fields and drives its virtual
// tables. Prints one "key: value" line per finding; the tests read them.
//
//   driver LIBRARY VERSION COMMAND [operator=NAME] [field=NAME:TYPE:VALUES] [input=TYPE:EXTENTS] ...
//   [memory=ADDRESS,...]
//
// VERSION is what getInferLibVersion() says (110400, 100300, 10701, ...; 0: no logger is offered). An extent of -1 is
// not known yet. Inputs are given in order.
#include <dlfcn.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "arguments.h"
#include "fake_tensorrt.h"

namespace driver {
namespace {

int32_t libraryVersion = 0;

std::string textOf(const trt::PluginFieldCollection& collection) {
  std::string text;
  for (int32_t i = 0; i < collection.nbFields; ++i) {
    const trt::PluginField& field = collection.fields[i];
    text += (i == 0 ? "" : " ") + std::string(field.name) + "=";
    for (int32_t item = 0; item < field.length; ++item) {
      if (field.type == trt::PluginFieldType::kCHAR) {
        text += static_cast<const char*>(field.data)[item];
      } else {
        text += item == 0 ? "" : ",";
        text += field.type == trt::PluginFieldType::kFLOAT32
                    ? std::to_string(static_cast<const float*>(field.data)[item])
                    : std::to_string(static_cast<const int32_t*>(field.data)[item]);
      }
    }
  }
  return text;
}

// --- Commands ------------------------------------------------------------------------------------------------------

struct Session {
  trt::IPluginCreatorV3One* creator;
  Fields fields;
  Inputs inputs;
  std::unique_ptr<trt::IPluginV3> plugin;

  template <typename Capability>
  static Capability* of(trt::IPluginV3& object, trt::PluginCapabilityType type) {
    return static_cast<Capability*>(object.getCapabilityInterface(type));
  }
  trt::IPluginV3OneBuild& build() { return *of<trt::IPluginV3OneBuild>(*plugin, trt::PluginCapabilityType::kBUILD); }
  trt::IPluginV3OneRuntime& runtime() {
    return *of<trt::IPluginV3OneRuntime>(*plugin, trt::PluginCapabilityType::kRUNTIME);
  }
  int32_t outputs() { return build().getNbOutputs(); }
};

void create(Session& session) {
  session.plugin.reset(session.creator->createPlugin("layer", &session.fields.collection, trt::TensorRTPhase::kBUILD));
  print("created", session.plugin ? "yes" : "no");
}

void createFromNull(Session& session) {
  session.plugin.reset(session.creator->createPlugin(nullptr, nullptr, trt::TensorRTPhase::kBUILD));
  print("created", session.plugin ? "yes" : "no");
}

void describeCreator(Session& session) {
  print("creator", std::string(session.creator->getPluginNamespace()) + "::" + session.creator->getPluginName() + " " +
                       session.creator->getPluginVersion());
  const trt::InterfaceInfo info = session.creator->getInterfaceInfo();
  print("interface", std::string(info.kind) + " " + std::to_string(info.major) + "." + std::to_string(info.minor));
  const trt::PluginFieldCollection* names = session.creator->getFieldNames();
  for (int32_t i = 0; i < names->nbFields; ++i) {
    const trt::PluginField& field = names->fields[i];
    print("field", std::string(field.name) + " " + std::to_string(static_cast<int>(field.type)) + " " +
                       std::to_string(field.length));
  }
}

// What happens to a plugin between a network and an execution context; every object is printed and deleted.
void roundTrip(Session& session) {
  create(session);
  if (!session.plugin) return;
  std::unique_ptr<trt::IPluginV3> clone(session.plugin->clone());
  const std::string serialized = textOf(*session.runtime().getFieldsToSerialize());
  session.plugin.reset();  // the clone has to stand on its own
  auto* cloneRuntime = Session::of<trt::IPluginV3OneRuntime>(*clone, trt::PluginCapabilityType::kRUNTIME);
  std::unique_ptr<trt::IPluginV3> restored(
      session.creator->createPlugin("layer", cloneRuntime->getFieldsToSerialize(), trt::TensorRTPhase::kRUNTIME));
  auto* restoredRuntime = Session::of<trt::IPluginV3OneRuntime>(*restored, trt::PluginCapabilityType::kRUNTIME);
  Context context;
  std::unique_ptr<trt::IPluginV3> attached(restoredRuntime->attachToContext(&context));
  restored.reset();
  auto* core = Session::of<trt::IPluginV3OneCore>(*attached, trt::PluginCapabilityType::kCORE);
  auto* build = Session::of<trt::IPluginV3OneBuild>(*attached, trt::PluginCapabilityType::kBUILD);
  auto* runtime = Session::of<trt::IPluginV3OneRuntime>(*attached, trt::PluginCapabilityType::kRUNTIME);
  print("serialized", serialized);
  print("attached", textOf(*runtime->getFieldsToSerialize()));
  print("plugin",
        std::string(core->getPluginNamespace()) + "::" + core->getPluginName() + " " + core->getPluginVersion());
  for (trt::IVersionedInterface* face :
       {static_cast<trt::IVersionedInterface*>(attached.get()), static_cast<trt::IVersionedInterface*>(core),
        static_cast<trt::IVersionedInterface*>(build), static_cast<trt::IVersionedInterface*>(runtime)}) {
    print("interface",
          std::string(face->getInterfaceInfo().kind) + " " + std::to_string(face->getInterfaceInfo().major));
  }
  print("outputs", std::to_string(build->getNbOutputs()));
  print("tactics", std::to_string(build->getNbTactics()));
  print("metadata", build->getMetadataString());
  print("timing cache", build->getTimingCacheID());
}

// One line per position: the types that fit there, given what stands before it.
void formats(Session& session) {
  const int32_t outputs = session.outputs();
  std::vector<trt::DynamicPluginTensorDesc> tensors = session.inputs.buildDescs(outputs);
  for (int32_t position = 0; position < static_cast<int32_t>(tensors.size()); ++position) {
    const trt::PluginTensorDesc original = tensors[position].desc;
    std::string fitting;
    for (const auto& [name, type] : kDataTypes) {
      for (trt::TensorFormat format : {trt::TensorFormat::kLINEAR, trt::TensorFormat::kHWC8}) {
        tensors[position].desc.type = type;
        tensors[position].desc.format = format;
        if (session.build().supportsFormatCombination(position, tensors.data(), session.inputs.count(), outputs)) {
          fitting += name + (format == trt::TensorFormat::kLINEAR ? "/linear " : "/hwc8 ");
        }
      }
    }
    tensors[position].desc = original;
    print(("position " + std::to_string(position)).c_str(), fitting);
  }
}

void outputTypes(Session& session) {
  std::vector<trt::DataType> types(session.outputs(), trt::DataType::kBOOL);
  const int32_t result = session.build().getOutputDataTypes(types.data(), session.outputs(),
                                                            session.inputs.types.data(), session.inputs.count());
  print("result", std::to_string(result));
  for (trt::DataType type : types) {
    for (const auto& [name, value] : kDataTypes) {
      if (result == 0 && value == type) print("type", name);
    }
  }
}

void outputShapes(Session& session) {
  std::vector<std::unique_ptr<ExtentHandle>> handles;
  std::vector<trt::DimsExprs> inputs;
  for (const trt::Dims& shape : session.inputs.shapes) {
    trt::DimsExprs expressions{shape.nbDims, {}};
    for (int32_t axis = 0; axis < shape.nbDims; ++axis) {
      handles.push_back(std::make_unique<ExtentHandle>(shape.d[axis]));
      expressions.d[axis] = handles.back().get();
    }
    inputs.push_back(expressions);
  }
  std::vector<trt::DimsExprs> outputs(session.outputs(), trt::DimsExprs{0, {}});
  BuilderHandle builder;
  const int32_t result = session.build().getOutputShapes(inputs.data(), session.inputs.count(), nullptr, 0,
                                                         outputs.data(), session.outputs(), builder);
  print("result", std::to_string(result));
  for (const trt::DimsExprs& output : outputs) {
    std::string shape;
    for (int32_t axis = 0; axis < output.nbDims; ++axis) {
      shape += (axis == 0 ? "" : ",") +
               (output.d[axis]->isConstant() ? std::to_string(output.d[axis]->getConstantValue()) : "?");
    }
    if (result == 0) print("shape", shape);
  }
}

void configure(Session& session) {
  const int32_t outputs = session.outputs();
  const auto tensors = session.inputs.buildDescs(outputs);
  const int32_t count = session.inputs.count();
  const int32_t result = session.build().configurePlugin(tensors.data(), count, tensors.data() + count, outputs);
  print("result", std::to_string(result));
  const size_t bytes = session.build().getWorkspaceSize(tensors.data(), count, tensors.data() + count, outputs);
  print("workspace", std::to_string(bytes));
}

void shapeChange(Session& session) {
  const int32_t outputs = session.outputs();
  const auto tensors = session.inputs.runtimeDescs(outputs);
  const int32_t count = session.inputs.count();
  const int32_t result = session.runtime().onShapeChange(tensors.data(), count, tensors.data() + count, outputs);
  print("result", std::to_string(result));
}

// As TensorRT times a layer while it builds.
void rehearse(Session& session) {
  const int32_t count = session.inputs.count();
  const auto tensors = session.inputs.runtimeDescs(session.outputs());
  const Memory memory(session.inputs.memory, count, session.outputs());
  const int32_t result = session.runtime().enqueue(tensors.data(), tensors.data() + count, memory.inputs.data(),
                                                   memory.outputs.data(), memory.workspace, memory.stream);
  print("result", std::to_string(result));
}

// The layer of an engine.
void enqueue(Session& session) {
  session.plugin.reset(
      session.creator->createPlugin("layer", session.runtime().getFieldsToSerialize(), trt::TensorRTPhase::kRUNTIME));
  rehearse(session);
}

}  // namespace
}  // namespace driver

// The plugin library asks the maker of the logger finder, i.e. this program, for its version.
extern "C" __attribute__((visibility("default"))) int32_t getInferLibVersion() { return driver::libraryVersion; }

int main(int argumentCount, char** arguments) {
  using namespace driver;
  if (argumentCount < 4) fail("usage: driver LIBRARY VERSION COMMAND [operator=...] [field=...] [input=...]");
  libraryVersion = static_cast<int32_t>(std::strtol(arguments[2], nullptr, 10));
  void* library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) fail(dlerror());
  const auto setLoggerFinder = reinterpret_cast<void (*)(void*)>(dlsym(library, "setLoggerFinder"));
  using GetCreators = trt::IPluginCreatorInterface* const* (*)(int32_t&);
  const auto getCreators = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"));
  if (setLoggerFinder == nullptr || getCreators == nullptr) fail("the library lacks TensorRT's entry points");

  static PlainFinder plainFinder;  // outlives this function where it is called more than once
  static VersionedFinder versionedFinder;
  const bool isPlain = libraryVersion >= 100000 && libraryVersion < 110000;
  if (libraryVersion != 0) {
    setLoggerFinder(isPlain ? static_cast<void*>(&plainFinder) : static_cast<void*>(&versionedFinder));
  }

  int32_t creatorCount = 0;
  trt::IPluginCreatorInterface* const* creators = getCreators(creatorCount);
  for (int32_t i = 0; i < creatorCount && std::string(arguments[3]) == "creators"; ++i) {
    auto* one = static_cast<trt::IPluginCreatorV3One*>(creators[i]);
    print("creator", std::string(one->getPluginNamespace()) + "::" + one->getPluginName());
  }
  auto* creator = creatorOf<trt::IPluginCreatorV3One>(argumentCount, arguments, creators, creatorCount);
  Session session{creator, {}, {}, nullptr};
  readArguments(argumentCount, arguments, session.fields, session.inputs);

  const std::map<std::string, std::function<void(Session&)>> onCreator = {{"creators", [](Session&) {}},
                                                                          {"creator", describeCreator},
                                                                          {"create", create},
                                                                          {"create-from-null", createFromNull},
                                                                          {"round-trip", roundTrip}};
  const std::map<std::string, std::function<void(Session&)>> onPlugin = {
      {"formats", formats},     {"output-types", outputTypes}, {"output-shapes", outputShapes},
      {"configure", configure}, {"shape-change", shapeChange}, {"enqueue", enqueue},
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
