// SPDX-License-Identifier: Apache-2.0
#include "sm90_linear/fp8_product.cuh"

template cudaError_t vorta::sm90_linear::launch_fp8_product<VORTA_BFLOAT16, false>(const linear::Product&,
                                                                                   cudaStream_t);
