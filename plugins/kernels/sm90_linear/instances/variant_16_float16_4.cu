// SPDX-License-Identifier: Apache-2.0
#include "sm90_linear/variant_product.cuh"

namespace vorta::sm90_linear {
template cudaError_t launch_variant<false, VORTA_FLOAT16, kWideTurns, kBias>(const linear::Product&, const BandShape&,
                                                                             cudaStream_t);
template cudaError_t launch_variant<false, VORTA_FLOAT16, kWideTurns, kBiasGelu>(const linear::Product&,
                                                                                 const BandShape&, cudaStream_t);
}  // namespace vorta::sm90_linear
