// SPDX-License-Identifier: Apache-2.0
//
// Symbolic dimensions. The public classes are thin handles (a virtual table for the destructor, then one pointer);
// their methods are inline calls on an implementation object inside TensorRT, so the slots of that object are the ABI.
#ifndef VORTA_TENSORRT_ABI_EXPRESSIONS_H_
#define VORTA_TENSORRT_ABI_EXPRESSIONS_H_

#include "types.h"

namespace nvinfer1 {

class IDimensionExpr;
class IExprBuilder;

namespace apiv {

class VRoot {
 public:
  virtual ~VRoot() noexcept = default;
};

class VDimensionExpr : public VRoot {
 public:
  virtual bool isConstant() const = 0;
  virtual int64_t getConstantValue() const = 0;
  virtual bool isSizeTensor() const = 0;
};

class VExprBuilder : public VRoot {
 public:
  virtual const IDimensionExpr* constant(int64_t value) = 0;
  virtual const IDimensionExpr* operation(DimensionOperation operation, const IDimensionExpr& first,
                                          const IDimensionExpr& second) = 0;
  virtual const IDimensionExpr* declareSizeTensor(int32_t output, const IDimensionExpr& typical,
                                                  const IDimensionExpr& upper) = 0;
};

}  // namespace apiv

class INoCopy {
 protected:
  INoCopy() = default;
  virtual ~INoCopy() = default;
  INoCopy(const INoCopy&) = delete;
  INoCopy(INoCopy&&) = delete;
  INoCopy& operator=(const INoCopy&) = delete;
  INoCopy& operator=(INoCopy&&) = delete;
};

class IDimensionExpr : public INoCopy {
 public:
  bool isConstant() const noexcept { return mImpl->isConstant(); }
  int64_t getConstantValue() const noexcept { return mImpl->getConstantValue(); }
  bool isSizeTensor() const noexcept { return mImpl->isSizeTensor(); }

 protected:
  apiv::VDimensionExpr* mImpl;
  virtual ~IDimensionExpr() noexcept = 0;
};
inline IDimensionExpr::~IDimensionExpr() noexcept = default;

class IExprBuilder : public INoCopy {
 public:
  const IDimensionExpr* constant(int64_t value) noexcept { return mImpl->constant(value); }
  const IDimensionExpr* operation(DimensionOperation operation, const IDimensionExpr& first,
                                  const IDimensionExpr& second) noexcept {
    return mImpl->operation(operation, first, second);
  }

 protected:
  apiv::VExprBuilder* mImpl;
  virtual ~IExprBuilder() noexcept = 0;
};
inline IExprBuilder::~IExprBuilder() noexcept = default;

// A shape whose extents are expressions.
class DimsExprs {
 public:
  int32_t nbDims;
  const IDimensionExpr* d[Dims::MAX_DIMS];
};

}  // namespace nvinfer1

#endif  // VORTA_TENSORRT_ABI_EXPRESSIONS_H_
