// SPDX-License-Identifier: Apache-2.0
//
// 16-bit elements, eight at a time, as float32 and e4m3; the GELU of the layers.
#ifndef VORTA_TRT_KERNELS_LINEAR_ELEMENTS_CUH_
#define VORTA_TRT_KERNELS_LINEAR_ELEMENTS_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

namespace vorta::linear {

/// Elements of one vector load or store of 16 bytes.
inline constexpr int kVector = 8;

template <class Element>
struct Pair;

template <>
struct Pair<__half> {
  static __device__ __forceinline__ float2 unpack(uint32_t pair) {
    return __half22float2(*reinterpret_cast<const __half2*>(&pair));
  }
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
};

template <>
struct Pair<__nv_bfloat16> {
  static __device__ __forceinline__ float2 unpack(uint32_t pair) {
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
  }
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
};

/// x/2 (1 + tanh(z)) with z = sqrt(2/pi) (x + 0.044715 x^3), as x / (1 + exp(-2 z)): exact at both ends.
__device__ __forceinline__ float gelu(float x) {
  const float z = 0.7978845608f * fmaf(0.044715f * x * x, x, x);
  return x / (1.0f + __expf(-2.0f * z));
}

/// Two floats as e4m3, the low one in the low byte; magnitudes above 448 become 448, NaN stays NaN.
__device__ __forceinline__ uint32_t pack_e4m3(float low, float high) {
  return __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, __NV_E4M3);
}

inline constexpr float kLargestE4m3 = 448.0f;

/// Scale by which a row with this largest magnitude is divided before it becomes e4m3; 1 for a row of zeros.
__device__ __forceinline__ float e4m3_scale(float largest) { return largest > 0.0f ? largest / kLargestE4m3 : 1.0f; }

/// Two e4m3 as float16, in which they are exact.
__device__ __forceinline__ uint32_t unpack_e4m3(uint32_t pair) {
#if __CUDA_ARCH__ >= 890
  const __half2_raw halves = __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(pair), __NV_E4M3);
  return static_cast<uint32_t>(halves.x) | (static_cast<uint32_t>(halves.y) << 16);
#else
  // Exponent and mantissa lie in both types side by side; the bias is 7 in one and 15 in the other.
  const uint32_t bytes = __byte_perm(pair, 0, 0x4140);  // one in each half
  const uint32_t magnitudes = (bytes & 0x007f007fu) << 7;
  const __half2 scaled = __hmul2(*reinterpret_cast<const __half2*>(&magnitudes), __float2half2_rn(256.0f));
  const uint32_t nan = __vcmpeq2(magnitudes, 0x3f803f80u) & 0x7e007e00u;
  return *reinterpret_cast<const uint32_t*>(&scaled) | nan | ((bytes & 0x00800080u) << 8);
#endif
}

}  // namespace vorta::linear

#endif  // VORTA_TRT_KERNELS_LINEAR_ELEMENTS_CUH_
