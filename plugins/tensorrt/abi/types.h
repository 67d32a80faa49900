// SPDX-License-Identifier: Apache-2.0
//
// Value types of the TensorRT plugin interface: enumerations, tensor descriptions, plugin fields. They cross the
// boundary to TensorRT by memory layout alone, so sizes, offsets and enum values are what matters here; the conformance
// check (../conformance) compares them with the real headers. Only what a plugin needs is declared.
//
// The namespace has to be TensorRT's own: the names are part of the C++ type information that both sides share.
#ifndef VORTA_TENSORRT_ABI_TYPES_H_
#define VORTA_TENSORRT_ABI_TYPES_H_

#include <cstddef>
#include <cstdint>

// The CUDA runtime's stream handle, without its header.
struct CUstream_st;
typedef CUstream_st* cudaStream_t;

namespace nvinfer1 {

using AsciiChar = char;

enum class DataType : int32_t {
  kFLOAT = 0,
  kHALF = 1,
  kINT8 = 2,
  kINT32 = 3,
  kBOOL = 4,
  kUINT8 = 5,
  kFP8 = 6,
  kBF16 = 7,
  kINT64 = 8,
};

// Memory layouts; kLINEAR is row-major without padding.
enum class TensorFormat : int32_t {
  kLINEAR = 0,
  kHWC8 = 2,  // stands for all the others, which the plugin refuses
};

enum class PluginFieldType : int32_t {
  kFLOAT16 = 0,
  kFLOAT32 = 1,
  kFLOAT64 = 2,
  kINT8 = 3,
  kINT16 = 4,
  kINT32 = 5,
  kCHAR = 6,
  kDIMS = 7,
  kUNKNOWN = 8,
  kBF16 = 9,
  kINT64 = 10,
};

// Whether a plugin object is made for a network (build) or out of an engine (runtime).
enum class TensorRTPhase : int32_t { kBUILD = 0, kRUNTIME = 1 };

// The three faces of a V3 plugin.
enum class PluginCapabilityType : int32_t { kCORE = 0, kBUILD = 1, kRUNTIME = 2 };

// Language in which an interface is implemented.
enum class APILanguage : int32_t { kCPP = 0, kPYTHON = 1 };

// Operators of symbolic dimensions.
enum class DimensionOperation : int32_t {
  kSUM = 0,
  kPROD = 1,
  kMAX = 2,
  kMIN = 3,
  kSUB = 4,
  kEQUAL = 5,
  kLESS = 6,
  kFLOOR_DIV = 7,
  kCEIL_DIV = 8,
};

// A shape: rank and extents. An extent of -1 is not known yet.
class Dims64 {
 public:
  static constexpr int32_t MAX_DIMS = 8;
  int32_t nbDims;
  int64_t d[MAX_DIMS];
};
using Dims = Dims64;

// A tensor as the runtime hands it to a plugin: every extent is known.
struct PluginTensorDesc {
  Dims dims;
  DataType type;
  TensorFormat format;
  float scale;  // of int8 tensors only
};

// A tensor as the builder describes it: `desc.dims` may hold -1, the profile bounds it.
struct DynamicPluginTensorDesc {
  PluginTensorDesc desc;
  Dims min;
  Dims max;
  Dims opt;
};

// One named attribute. `data` points to `length` items of `type`; it is borrowed.
class PluginField {
 public:
  const AsciiChar* name;
  const void* data;
  PluginFieldType type;
  int32_t length;

  PluginField(const AsciiChar* name_ = nullptr, const void* data_ = nullptr,
              PluginFieldType type_ = PluginFieldType::kUNKNOWN, int32_t length_ = 0) noexcept
      : name(name_), data(data_), type(type_), length(length_) {}
};

struct PluginFieldCollection {
  int32_t nbFields{};
  const PluginField* fields{};
};

}  // namespace nvinfer1

#endif  // VORTA_TENSORRT_ABI_TYPES_H_
