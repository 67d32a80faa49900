// SPDX-License-Identifier: Apache-2.0
//
// Pairs of 16-bit inputs to float32 and to bfloat16, and float32 to int8.
#ifndef VORTA_TRT_KERNELS_FP8_ELEMENTS_CUH_
#define VORTA_TRT_KERNELS_FP8_ELEMENTS_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "cutlass/numeric_types.h"

namespace vorta::fp8 {

inline constexpr float kLargestInt8 = 127.0f;

template <class Element>
__device__ __forceinline__ float2 unpack(uint32_t pair) {
  if constexpr (std::is_same_v<Element, cutlass::bfloat16_t>) {
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
  } else {
    return __half22float2(*reinterpret_cast<const __half2*>(&pair));
  }
}

/// bfloat16 pair, whatever the type of the input.
__device__ __forceinline__ float2 unpack_bf16(uint32_t pair) { return unpack<cutlass::bfloat16_t>(pair); }

__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

/// pair * factor + offset in bfloat16, rounded once (bfloat16 inputs) or from float32; factor and offset are bfloat16.
template <class Element>
__device__ __forceinline__ uint32_t scale_and_shift(uint32_t pair, uint32_t factor, uint32_t offset) {
  if constexpr (std::is_same_v<Element, cutlass::bfloat16_t>) {
    const __nv_bfloat162 result =
        __hfma2(*reinterpret_cast<const __nv_bfloat162*>(&pair), *reinterpret_cast<const __nv_bfloat162*>(&factor),
                *reinterpret_cast<const __nv_bfloat162*>(&offset));
    return *reinterpret_cast<const uint32_t*>(&result);
  } else {
    const float2 x = unpack<Element>(pair), f = unpack_bf16(factor), o = unpack_bf16(offset);
    return pack_bf16(fmaf(x.x, f.x, o.x), fmaf(x.y, f.y, o.y));
  }
}

/// pair * factor in bfloat16; exact for bfloat16 inputs if factor is a power of two.
template <class Element>
__device__ __forceinline__ uint32_t scale(uint32_t pair, uint32_t factor) {
  if constexpr (!std::is_same_v<Element, cutlass::bfloat16_t>) {
    const float2 x = unpack<Element>(pair);
    pair = pack_bf16(x.x, x.y);
  }
  return scale_and_shift<cutlass::bfloat16_t>(pair, factor, 0);
}

/// Largest magnitude of pairs of bfloat16, over `kLanes` neighbouring lanes; NaN is larger than any other.
template <int kLanes, int kCount>
__device__ __forceinline__ float largest_of(uint32_t (&pairs)[kCount]) {
  uint32_t magnitudes = 0;  // of either half of the words; without the sign they are ordered as integers
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    magnitudes = __vmaxu2(magnitudes, pairs[i] & 0x7fff7fffu);
    asm volatile("" : "+r"(pairs[i]));  // else the compiler keeps every element as a float, in twice the registers
  }
  uint32_t largest = max(magnitudes >> 16, magnitudes & 0xffffu);
#pragma unroll
  for (int bit = kLanes / 2; bit > 0; bit /= 2) largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, bit));
  return __uint_as_float(largest << 16);
}

/// Two pairs of bfloat16 times `factor`, rounded to int8; their magnitude is then at most 127.
__device__ __forceinline__ uint32_t pack_int8(uint32_t low, uint32_t high, float factor) {
  constexpr float kBias = 12582912.0f;  // 1.5 * 2^23: the low byte of the sum is the rounded number
  const auto rounded = [factor](float x) { return __float_as_uint(fmaf(x, factor, kBias)); };
  const float2 a = unpack_bf16(low), b = unpack_bf16(high);
  return __byte_perm(__byte_perm(rounded(a.x), rounded(a.y), 0x0040), __byte_perm(rounded(b.x), rounded(b.y), 0x0040),
                     0x5410);
}

/// Sixteen int8 from eight pairs of bfloat16.
__device__ __forceinline__ uint4 pack_int8(const uint32_t* pairs, float factor) {
  return {pack_int8(pairs[0], pairs[1], factor), pack_int8(pairs[2], pairs[3], factor),
          pack_int8(pairs[4], pairs[5], factor), pack_int8(pairs[6], pairs[7], factor)};
}

}  // namespace vorta::fp8

#endif  // VORTA_TRT_KERNELS_FP8_ELEMENTS_CUH_
