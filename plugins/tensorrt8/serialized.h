// SPDX-License-Identifier: Apache-2.0
//
// The fields of a plugin as bytes inside an engine of TensorRT 8.6 (TensorRT 10 and 11 store the fields themselves).
#ifndef VORTA_TENSORRT8_SERIALIZED_H_
#define VORTA_TENSORRT8_SERIALIZED_H_

#include <cstddef>

#include "operator.h"

namespace vorta::plugin {

// Bytes that a plugin of the operator takes: 76 for RoutedAttention.
size_t serializedBytes(const Operator& op) noexcept;

// Writes serializedBytes() bytes, of any alignment.
void writeRecord(const Record& record, void* buffer) noexcept;

// Reads and validates them. Throws PluginError.
Record readRecord(const Operator& op, const void* data, size_t bytes);

}  // namespace vorta::plugin

#endif  // VORTA_TENSORRT8_SERIALIZED_H_
