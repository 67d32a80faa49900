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
  static vorta::plugin::RoutedAttentionCreator creator;
  static vorta::trt::IPluginCreatorInterface* const creators[] = {&creator};
  count = 1;
  return creators;
}

}  // extern "C"
