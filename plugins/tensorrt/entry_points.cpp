// SPDX-License-Identifier: Apache-2.0
//
// The two symbols that TensorRT looks up when it loads a plugin library.
#include "creator.h"
#include "logger.h"
#include "vorta_trt/routed_attention.h"  // VORTA_API

extern "C" {

// Called with an ILoggerFinder, whose layout depends on the caller's version.
VORTA_API void setLoggerFinder(void* finder) { vorta::plugin::rememberLoggerFinder(finder); }

VORTA_API vorta::trt::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static const vorta::plugin::Creators<vorta::plugin::Creator, vorta::trt::IPluginCreatorInterface> creators;
  return creators.list(count);
}

}  // extern "C"
