// SPDX-License-Identifier: Apache-2.0
//
// The root of TensorRT's versioned interfaces. Each interface names its kind and version; TensorRT dispatches on them,
// and promises that the virtual table of a given version never changes. The order of the virtual functions is the ABI.
#ifndef VORTA_TENSORRT_ABI_VERSIONED_H_
#define VORTA_TENSORRT_ABI_VERSIONED_H_

#include "types.h"

namespace nvinfer1 {

// Kind and version of an interface. `kind` is a literal that is compared as text.
class InterfaceInfo {
 public:
  const char* kind;
  int32_t major;
  int32_t minor;
};

class IVersionedInterface {
 public:
  virtual APILanguage getAPILanguage() const noexcept { return APILanguage::kCPP; }
  virtual InterfaceInfo getInterfaceInfo() const noexcept = 0;
  virtual ~IVersionedInterface() noexcept = default;

 protected:
  IVersionedInterface() = default;
  IVersionedInterface(const IVersionedInterface&) = default;
  IVersionedInterface(IVersionedInterface&&) = default;
  IVersionedInterface& operator=(const IVersionedInterface&) & = default;
  IVersionedInterface& operator=(IVersionedInterface&&) & = default;
};

}  // namespace nvinfer1

#endif  // VORTA_TENSORRT_ABI_VERSIONED_H_
