// SPDX-License-Identifier: Apache-2.0
//
// The TensorRT plugin interface under one name, `vorta::trt`: our declarations (abi/), or the headers of a TensorRT
// installation when CMake was given VORTA_TENSORRT_INCLUDE_DIR. Both give the same binary.
#ifndef VORTA_TENSORRT_TENSORRT_API_H_
#define VORTA_TENSORRT_TENSORRT_API_H_

#if defined(VORTA_USE_TENSORRT_HEADERS)
#include <NvInferRuntime.h>
#else
#include "abi/plugin_v3.h"
#endif

namespace vorta {
namespace trt = nvinfer1;
}

#endif  // VORTA_TENSORRT_TENSORRT_API_H_
