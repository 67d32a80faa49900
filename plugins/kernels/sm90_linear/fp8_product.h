// SPDX-License-Identifier: Apache-2.0
//
// The fp8 product on Hopper: CUTLASS's persistent kernel with both scales, bias and GELU in its epilogue.
#ifndef VORTA_TRT_KERNELS_SM90_LINEAR_FP8_PRODUCT_H_
#define VORTA_TRT_KERNELS_SM90_LINEAR_FP8_PRODUCT_H_

#include "linear/product.h"

namespace vorta::sm90_linear {

/// Enqueues an fp8 product; one instance for each output type, with and without GELU.
template <vorta_dtype kDtype, bool kGelu>
cudaError_t launch_fp8_product(const linear::Product& product, cudaStream_t stream);

}  // namespace vorta::sm90_linear

#endif  // VORTA_TRT_KERNELS_SM90_LINEAR_FP8_PRODUCT_H_
