// SPDX-License-Identifier: Apache-2.0
//
// The rules on number, types and shapes of a layer's tensors, and the messages where one is broken.
#ifndef VORTA_TENSORRT_TENSOR_RULES_H_
#define VORTA_TENSORRT_TENSOR_RULES_H_

#include <initializer_list>
#include <string>
#include <vector>

#include "operator.h"

namespace vorta::plugin {

// How many inputs a layer with these fields has.
int32_t inputCountOf(const Record& record);
inline int32_t outputCountOf(const Record& record) { return static_cast<int32_t>(record.op().outputs.size()); }

// Throws PluginError unless the counts fit.
void checkCounts(const Record& record, int32_t inputCount, int32_t outputCount);

// Throws PluginError unless every input has a type that the operator takes.
void checkTypes(const Record& record, const trt::DataType* inputTypes);

// Whether tensor `position` of a layer, counted inputs first, may have its type beside those before it. `types` are
// those of the tensors up to it, `activation` is the type of the activations where that is one of them.
bool fits(const Record& record, int32_t position, const std::vector<trt::DataType>& types, trt::DataType activation);

// The type of the activations if `types`, those of the first tensors of a layer, has one of them.
trt::DataType activationType(const Record& record, const std::vector<trt::DataType>& types);

// The type of output `output` beside activations of this type.
trt::DataType outputType(const Record& record, int32_t output, trt::DataType activation);

// Whether the kernels take `type` for activations.
bool isActivationType(trt::DataType type);

// vorta_dtype of an activation type.
int32_t kernelType(trt::DataType type);

// What an axis may be: one extent or another; kUnknown is any.
struct Wanted {
  Wanted(int64_t only) : first(only), second(only) {}  // NOLINT: a shape is written as a list of numbers
  Wanted(int64_t one, int64_t other) : first(one), second(other) {}
  int64_t first;
  int64_t second;
};

// Throws PluginError unless input `input` of the layer has the shape; `expected` says it in words, for the message.
// Extents that are not known yet pass.
void requireShape(const Setting& setting, int32_t input, const std::vector<Wanted>& wanted,
                  const std::string& expected);

// The axes of a shape as requireShape() wants them.
std::vector<Wanted> wantedLike(const trt::Dims& dims);

// `dims` with the extents of `largest` where they are not known.
trt::Dims atLargest(trt::Dims dims, const trt::Dims& largest);

// `extent`, or `least` where it is not known yet. Throws PluginError where it exceeds 31 bits.
int32_t extentOr(int64_t extent, int32_t least);

}  // namespace vorta::plugin

#endif  // VORTA_TENSORRT_TENSOR_RULES_H_
