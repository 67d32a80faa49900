// SPDX-License-Identifier: Apache-2.0
//
// A plugin's attributes as bytes inside an engine of TensorRT 8.6 (TensorRT 10 and 11 store the fields themselves).
#ifndef VORTA_TENSORRT8_SERIALIZED_H_
#define VORTA_TENSORRT8_SERIALIZED_H_

#include <cstddef>

#include "fields.h"

namespace vorta::plugin {

inline constexpr size_t kSerializedBytes = 76;

// Writes kSerializedBytes bytes, of any alignment.
void writeAttributes(const Attributes& attributes, void* buffer) noexcept;

// Reads and validates them. Throws PluginError.
Attributes readAttributes(const void* data, size_t bytes);

}  // namespace vorta::plugin

#endif  // VORTA_TENSORRT8_SERIALIZED_H_
