// SPDX-License-Identifier: Apache-2.0
//
// Pairs of 16-bit inputs to float32, and float32 to int8.
#ifndef VORTA_TRT_KERNELS_SM90_FP8_ELEMENTS_CUH_
#define VORTA_TRT_KERNELS_SM90_FP8_ELEMENTS_CUH_

#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "cutlass/numeric_types.h"

namespace vorta::sm90_fp8 {

template <class Element>
__device__ __forceinline__ float2 unpack(uint32_t pair) {
  if constexpr (std::is_same_v<Element, cutlass::bfloat16_t>) {
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
  } else {
    return __half22float2(*reinterpret_cast<const __half2*>(&pair));
  }
}

/// Four numbers times `factor`, rounded to int8; their magnitude is then at most 127.
__device__ __forceinline__ uint32_t pack_int8(float2 low, float2 high, float factor) {
  const uint32_t a = __float2int_rn(low.x * factor), b = __float2int_rn(low.y * factor);
  const uint32_t c = __float2int_rn(high.x * factor), d = __float2int_rn(high.y * factor);
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

}  // namespace vorta::sm90_fp8

#endif  // VORTA_TRT_KERNELS_SM90_FP8_ELEMENTS_CUH_
