// SPDX-License-Identifier: Apache-2.0
#include "sm90_linear/variant_product.cuh"

namespace vorta::sm90_linear {
template cudaError_t launch_variant<true, VORTA_FLOAT16, kWide, kBias>(const linear::Product&, const BandShape&,
                                                                       cudaStream_t);
template cudaError_t launch_variant<true, VORTA_FLOAT16, kWide, kBiasGelu>(const linear::Product&, const BandShape&,
                                                                           cudaStream_t);
template cudaError_t launch_variant<true, VORTA_FLOAT16, kWide, kBiasGated>(const linear::Product&, const BandShape&,
                                                                            cudaStream_t);
template cudaError_t launch_variant<true, VORTA_FLOAT16, kWide, kBiasGeluQuantized>(const linear::Product&,
                                                                                    const BandShape&, cudaStream_t);
}  // namespace vorta::sm90_linear
