// SPDX-License-Identifier: Apache-2.0
#ifndef VORTA_TRT_KERNELS_SM90_TENSOR_MAPS_H_
#define VORTA_TRT_KERNELS_SM90_TENSOR_MAPS_H_

#include <cuda_runtime_api.h>

#include "attention_params.h"

namespace vorta::sm90 {

/// Fills the tensor maps of `params`, whose other members are set; `keys`: keys of a block. Fails with a message.
vorta_status make_tensor_maps(AttentionParams& params, vorta_dtype dtype, int keys);

}  // namespace vorta::sm90

#endif  // VORTA_TRT_KERNELS_SM90_TENSOR_MAPS_H_
