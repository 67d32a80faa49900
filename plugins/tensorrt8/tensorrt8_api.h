// SPDX-License-Identifier: Apache-2.0
//
// TensorRT 8.6's plugin interface under one name, `vorta::trt8`: our declarations, or, for the conformance check alone,
// the headers of an installation.
#ifndef VORTA_TENSORRT8_TENSORRT8_API_H_
#define VORTA_TENSORRT8_TENSORRT8_API_H_

#if defined(VORTA_USE_TENSORRT8_HEADERS)
#include <NvInferRuntime.h>
namespace vorta {
namespace trt8 = nvinfer1;
}
#else
#include "abi/interfaces.h"
#endif

#endif  // VORTA_TENSORRT8_TENSORRT8_API_H_
