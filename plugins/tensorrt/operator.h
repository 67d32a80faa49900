// SPDX-License-Identifier: Apache-2.0
//
// What makes an operator a TensorRT layer: its fields, its tensors, and what it asks of the kernels. The plugin classes
// (plugin.h, ../tensorrt8/plugin_v2.h) and their creators are written once, over this; operators/ has one file for each
// header of the C API.
#ifndef VORTA_TENSORRT_OPERATOR_H_
#define VORTA_TENSORRT_OPERATOR_H_

#include <memory>
#include <utility>
#include <vector>

#include "field_table.h"

namespace vorta::plugin {

inline constexpr int64_t kUnknown = -1;  // an extent that TensorRT does not know yet

// What a tensor holds. Activations are all float16 or all bfloat16; every operator has one among its inputs.
enum class Holds {
  kActivation,
  kFloat32,
  kInt32,
  kWeight,        // of a norm: of the activations' type, or float32
  kFloat8,        // weights: e4m3, or int32 with four of them each, where a parser knows no float8
  kPackedFloat8,  // quantised activations: int32 with four e4m3 each, which every TensorRT takes between two plugins
};

struct TensorSpec {
  const char* name;
  Holds holds;
  const char* onlyIf = nullptr;  // of an input: an integer field; the input is there if and only if that is > 0
};

// An axis of an output: axis `axis` of input `input`, or `constant` where `input` is negative.
struct OutputAxis {
  int32_t input;
  int32_t axis;
  int64_t constant = 0;
};

struct Operator;

// The values of an operator's fields, read and validated, in the form of field_table.h.
class Record {
 public:
  Record(const Operator& op, std::vector<char> bytes) : op_(&op), bytes_(std::move(bytes)) {}

  const Operator& op() const { return *op_; }
  const char* data() const { return bytes_.data(); }
  size_t size() const { return bytes_.size(); }

  // The values as a struct whose members are the record's items.
  template <typename Fields>
  Fields as() const {
    Fields fields;
    copyTo(&fields, sizeof(fields));
    return fields;
  }
  // Copies the items to `destination`. Throws PluginError unless the record has exactly `bytes` bytes.
  void copyTo(void* destination, size_t bytes) const;
  // Copies the first `bytes` bytes. Throws PluginError if there are fewer.
  void copyFirstTo(void* destination, size_t bytes) const;

 private:
  const Operator* op_;
  std::vector<char> bytes_;
};

// A layer, and what is known of its inputs.
struct Setting {
  const Record& record;
  std::vector<trt::Dims> inputs;     // empty if nothing is known; extents may be kUnknown
  std::vector<trt::DataType> types;  // empty if they are not known

  // Type of the activations.
  trt::DataType type() const;
};

// Device memory of a launch, row-major, in the order of the operator's tensors.
struct Memory {
  const void* const* inputs;
  void* const* outputs;
  void* workspace;
  cudaStream_t stream;
  bool rehearsal =
      false;  // TensorRT times the layer while it builds: other GPUs are not there, and nobody reads outputs
};

struct Operator {
  FieldTable fields;  // with the operator's name and version
  const char* tag;    // two letters by which TensorRT 8.6's engines tell records apart
  std::vector<TensorSpec> inputs;
  std::vector<TensorSpec> outputs;

  // Checks the fields, and the shapes of the inputs against each other, the fields and the limits of the kernels, as
  // far as they are known. Throws PluginError.
  void (*check)(const Setting&);
  // The shape of an output for inputs that check() has passed.
  std::vector<OutputAxis> (*outputShape)(int32_t output, const Setting&);
  // Bytes of scratch memory for inputs of these shapes, which check() has passed, or smaller ones; null for none.
  // Throws PluginError.
  size_t (*workspaceBytes)(const Setting&);
  // Launches a layer that check() has passed; does nothing else, for TensorRT captures it. Throws PluginError.
  void (*enqueue)(const Setting&, const Memory&);

  // The first input that is an activation, of whose type all are.
  int32_t activationInput() const;

  size_t checkedWorkspaceBytes(const Setting& setting) const {
    check(setting);
    return workspaceBytes == nullptr ? 0 : workspaceBytes(setting);
  }
};

// Every operator of this library.
const std::vector<const Operator*>& operators();

// A creator of each operator, in the form that a plugin library hands to TensorRT.
template <typename Creator, typename Interface>
class Creators {
 public:
  Creators() {
    for (const Operator* op : operators()) {
      creators_.push_back(std::make_unique<Creator>(*op));
      pointers_.push_back(creators_.back().get());
    }
  }
  Interface* const* list(int32_t& count) const {
    count = static_cast<int32_t>(pointers_.size());
    return pointers_.data();
  }

 private:
  std::vector<std::unique_ptr<Creator>> creators_;
  std::vector<Interface*> pointers_;
};

// What a plugin was made for: to build an engine, where it runs only to be timed, or to run one.
enum class Purpose { kBuild, kRun };

// Reads and validates fields and the kernels' rules on them. Throws PluginError.
Record recordFromFields(const Operator& op, const trt::PluginFieldCollection* fields);

}  // namespace vorta::plugin

#endif  // VORTA_TENSORRT_OPERATOR_H_
