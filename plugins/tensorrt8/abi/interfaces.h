// SPDX-License-Identifier: Apache-2.0
//
// The V2 plugin interface of TensorRT 8.6, the least of it that a dynamic-shape plugin needs. Virtual functions stand
// in slot order; unlike V3 nothing here is versioned by name, a plugin says in getTensorRTVersion() which class it is.
//
// The names are TensorRT 8's and partly those of ../../tensorrt/abi, with other layouts (extents were 32 bits wide).
// One library holds both, so these live in a namespace of their own: TensorRT 8 calls plugins by slot and asks for no
// C++ type information. The conformance check (../conformance) compares all of it with the real headers.
#ifndef VORTA_TENSORRT8_ABI_INTERFACES_H_
#define VORTA_TENSORRT8_ABI_INTERFACES_H_

#include <cstddef>
#include <cstdint>

// Opaque handles: the CUDA runtime's stream, and two libraries that TensorRT 8 offers to plugins.
struct CUstream_st;
typedef CUstream_st* cudaStream_t;
struct cudnnContext;
struct cublasContext;

namespace vorta::trt8 {

using AsciiChar = char;

enum class DataType : int32_t { kFLOAT = 0, kHALF = 1, kINT8 = 2, kINT32 = 3, kBOOL = 4, kUINT8 = 5, kFP8 = 6 };

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
};

// Which class of plugin an object is: the upper byte of getTensorRTVersion().
enum class PluginVersion : uint8_t { kV2 = 0, kV2_EXT = 1, kV2_IOEXT = 2, kV2_DYNAMICEXT = 3 };

// A shape: rank and extents. An extent of -1 is not known yet.
class Dims32 {
 public:
  static constexpr int32_t MAX_DIMS = 8;
  int32_t nbDims;
  int32_t d[MAX_DIMS];
};
using Dims = Dims32;

struct PluginTensorDesc {
  Dims dims;
  DataType type;
  TensorFormat format;
  float scale;  // of int8 tensors only
};

// A tensor with the bounds of the optimization profile; `desc.dims` may hold -1 while an engine is built.
struct DynamicPluginTensorDesc {
  PluginTensorDesc desc;
  Dims min;
  Dims max;
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

class IGpuAllocator;
class IDimensionExpr;

namespace apiv {

class VRoot {
 public:
  virtual ~VRoot() noexcept = default;
};

class VDimensionExpr : public VRoot {
 public:
  virtual bool isConstant() const = 0;
  virtual int32_t getConstantValue() const = 0;
};

class VExprBuilder : public VRoot {
 public:
  virtual const IDimensionExpr* constant(int32_t value) = 0;
};

}  // namespace apiv

// A symbolic extent: a thin handle on an object inside TensorRT. Never made or destroyed here.
class IDimensionExpr {
 public:
  bool isConstant() const noexcept { return mImpl->isConstant(); }
  int32_t getConstantValue() const noexcept { return mImpl->getConstantValue(); }

 protected:
  IDimensionExpr() = default;
  virtual ~IDimensionExpr() noexcept = default;
  apiv::VDimensionExpr* mImpl;
};

// Makes new expressions; of those the plugins need constants alone.
class IExprBuilder {
 public:
  const IDimensionExpr* constant(int32_t value) noexcept { return mImpl->constant(value); }

 protected:
  IExprBuilder() = default;
  virtual ~IExprBuilder() noexcept = default;
  apiv::VExprBuilder* mImpl;
};

// A shape whose extents are expressions.
class DimsExprs {
 public:
  int32_t nbDims;
  const IDimensionExpr* d[Dims::MAX_DIMS];
};

inline constexpr int32_t kVERSION = 8600;  // TensorRT 8.6.0, the version that this interface was declared after

class IPluginV2 {
 public:
  virtual int32_t getTensorRTVersion() const noexcept { return kVERSION; }
  virtual const AsciiChar* getPluginType() const noexcept = 0;
  virtual const AsciiChar* getPluginVersion() const noexcept = 0;
  virtual int32_t getNbOutputs() const noexcept = 0;
  virtual Dims getOutputDimensions(int32_t index, const Dims* inputs, int32_t inputCount) noexcept = 0;
  virtual bool supportsFormat(DataType type, TensorFormat format) const noexcept = 0;
  virtual void configureWithFormat(const Dims* inputs, int32_t inputCount, const Dims* outputs, int32_t outputCount,
                                   DataType type, TensorFormat format, int32_t maxBatch) noexcept = 0;
  virtual int32_t initialize() noexcept = 0;
  virtual void terminate() noexcept = 0;
  virtual size_t getWorkspaceSize(int32_t maxBatch) const noexcept = 0;
  virtual int32_t enqueue(int32_t batch, const void* const* inputs, void* const* outputs, void* workspace,
                          cudaStream_t stream) noexcept = 0;
  virtual size_t getSerializationSize() const noexcept = 0;
  virtual void serialize(void* buffer) const noexcept = 0;
  virtual void destroy() noexcept = 0;
  virtual IPluginV2* clone() const noexcept = 0;
  virtual void setPluginNamespace(const AsciiChar* pluginNamespace) noexcept = 0;
  virtual const AsciiChar* getPluginNamespace() const noexcept = 0;

  IPluginV2() = default;
  virtual ~IPluginV2() noexcept = default;

 protected:
  IPluginV2(const IPluginV2&) = default;
  IPluginV2(IPluginV2&&) = default;
  IPluginV2& operator=(const IPluginV2&) & = default;
  IPluginV2& operator=(IPluginV2&&) & = default;
};

class IPluginV2Ext : public IPluginV2 {
 public:
  virtual DataType getOutputDataType(int32_t index, const DataType* inputTypes, int32_t inputCount) const noexcept = 0;
  virtual bool isOutputBroadcastAcrossBatch(int32_t output, const bool* inputIsBroadcast,
                                            int32_t inputCount) const noexcept = 0;
  virtual bool canBroadcastInputAcrossBatch(int32_t input) const noexcept = 0;
  virtual void configurePlugin(const Dims* inputs, int32_t inputCount, const Dims* outputs, int32_t outputCount,
                               const DataType* inputTypes, const DataType* outputTypes, const bool* inputIsBroadcast,
                               const bool* outputIsBroadcast, TensorFormat format, int32_t maxBatch) noexcept = 0;

  IPluginV2Ext() = default;
  ~IPluginV2Ext() override = default;

  virtual void attachToContext(cudnnContext*, cublasContext*, IGpuAllocator*) noexcept {}
  virtual void detachFromContext() noexcept {}
  IPluginV2Ext* clone() const noexcept override = 0;

 protected:
  IPluginV2Ext(const IPluginV2Ext&) = default;
  IPluginV2Ext(IPluginV2Ext&&) = default;
  IPluginV2Ext& operator=(const IPluginV2Ext&) & = default;
  IPluginV2Ext& operator=(IPluginV2Ext&&) & = default;

  void configureWithFormat(const Dims*, int32_t, const Dims*, int32_t, DataType, TensorFormat,
                           int32_t) noexcept override {}
};

// A plugin for tensors with a batch dimension and dynamic extents. The functions of the base classes about batches and
// fixed shapes are closed off.
class IPluginV2DynamicExt : public IPluginV2Ext {
 public:
  IPluginV2DynamicExt* clone() const noexcept override = 0;
  virtual DimsExprs getOutputDimensions(int32_t output, const DimsExprs* inputs, int32_t inputCount,
                                        IExprBuilder& builder) noexcept = 0;
  // Positions count inputs first, then outputs; the answer may depend on tensors[0..position] only.
  virtual bool supportsFormatCombination(int32_t position, const PluginTensorDesc* tensors, int32_t inputCount,
                                         int32_t outputCount) noexcept = 0;
  virtual void configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t inputCount,
                               const DynamicPluginTensorDesc* outputs, int32_t outputCount) noexcept = 0;
  virtual size_t getWorkspaceSize(const PluginTensorDesc* inputs, int32_t inputCount, const PluginTensorDesc* outputs,
                                  int32_t outputCount) const noexcept = 0;
  virtual int32_t enqueue(const PluginTensorDesc* inputDescs, const PluginTensorDesc* outputDescs,
                          const void* const* inputs, void* const* outputs, void* workspace,
                          cudaStream_t stream) noexcept = 0;

 protected:
  int32_t getTensorRTVersion() const noexcept override {
    return static_cast<int32_t>(PluginVersion::kV2_DYNAMICEXT) << 24 | (kVERSION & 0xFFFFFF);
  }
  ~IPluginV2DynamicExt() noexcept override = default;

 private:
  void configurePlugin(const Dims*, int32_t, const Dims*, int32_t, const DataType*, const DataType*, const bool*,
                       const bool*, TensorFormat, int32_t) noexcept final {}
  bool supportsFormat(DataType, TensorFormat) const noexcept final { return false; }
  Dims getOutputDimensions(int32_t, const Dims*, int32_t) noexcept final { return Dims{-1, {}}; }
  bool isOutputBroadcastAcrossBatch(int32_t, const bool*, int32_t) const noexcept final { return false; }
  bool canBroadcastInputAcrossBatch(int32_t) const noexcept final { return true; }
  size_t getWorkspaceSize(int32_t) const noexcept final { return 0; }
  int32_t enqueue(int32_t, const void* const*, void* const*, void*, cudaStream_t) noexcept final { return 1; }
};

class IPluginCreator {
 public:
  virtual int32_t getTensorRTVersion() const noexcept { return kVERSION; }
  virtual const AsciiChar* getPluginName() const noexcept = 0;
  virtual const AsciiChar* getPluginVersion() const noexcept = 0;
  virtual const PluginFieldCollection* getFieldNames() noexcept = 0;
  virtual IPluginV2* createPlugin(const AsciiChar* name, const PluginFieldCollection* fields) noexcept = 0;
  virtual IPluginV2* deserializePlugin(const AsciiChar* name, const void* data, size_t bytes) noexcept = 0;
  virtual void setPluginNamespace(const AsciiChar* pluginNamespace) noexcept = 0;
  virtual const AsciiChar* getPluginNamespace() const noexcept = 0;

  IPluginCreator() = default;
  virtual ~IPluginCreator() = default;

 protected:
  IPluginCreator(const IPluginCreator&) = default;
  IPluginCreator(IPluginCreator&&) = default;
  IPluginCreator& operator=(const IPluginCreator&) & = default;
  IPluginCreator& operator=(IPluginCreator&&) & = default;
};

}  // namespace vorta::trt8

#endif  // VORTA_TENSORRT8_ABI_INTERFACES_H_
