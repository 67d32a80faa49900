// SPDX-License-Identifier: Apache-2.0
#ifndef VORTA_TRT_KERNELS_SM90_FP8_ATTENTION_PARAMS_H_
#define VORTA_TRT_KERNELS_SM90_FP8_ATTENTION_PARAMS_H_

#include "../fp8/images.h"
#include "../sm90/attention_params.h"
#include "block_shape.h"

namespace vorta::sm90_fp8 {

using fp8::ChunkNote;

/// Parameters of the 8-bit kernel, passed by value.
struct AttentionParams {
  sm90::Pattern pattern;
  fp8::Images images;
};

}  // namespace vorta::sm90_fp8

#endif  // VORTA_TRT_KERNELS_SM90_FP8_ATTENTION_PARAMS_H_
