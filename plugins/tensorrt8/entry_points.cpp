// SPDX-License-Identifier: Apache-2.0
//
// The symbol by which TensorRT 8.6 finds the plugin; it looks up setLoggerFinder() (../tensorrt/entry_points.cpp), too.
// Newer versions take getCreators() where a library has both.
#include "creator_v2.h"
#include "vorta_trt/routed_attention.h"  // VORTA_API

extern "C" VORTA_API vorta::trt8::IPluginCreator* const* getPluginCreators(int32_t& count) {
  static const vorta::plugin::Creators<vorta::plugin::CreatorV2, vorta::trt8::IPluginCreator> creators;
  return creators.list(count);
}
