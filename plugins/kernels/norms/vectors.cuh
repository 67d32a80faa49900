// SPDX-License-Identifier: Apache-2.0
//
// Vectors of eight elements: 16 bits in memory, float32 in arithmetic.
#ifndef VORTA_TRT_KERNELS_NORMS_VECTORS_CUH_
#define VORTA_TRT_KERNELS_NORMS_VECTORS_CUH_

#include "calls.h"
#include "linear/elements.cuh"

namespace vorta::norms {

/// Eight elements in float32.
struct Floats {
  float at[kVector];
};

using linear::Pair;

template <class Element>
__device__ __forceinline__ Floats unpack(const uint4& vector) {
  const float2 a = Pair<Element>::unpack(vector.x), b = Pair<Element>::unpack(vector.y),
               c = Pair<Element>::unpack(vector.z), d = Pair<Element>::unpack(vector.w);
  return {{a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y}};
}

/// Rounds to the nearest.
template <class Element>
__device__ __forceinline__ uint4 pack(const Floats& v) {
  return {Pair<Element>::pack(v.at[0], v.at[1]), Pair<Element>::pack(v.at[2], v.at[3]),
          Pair<Element>::pack(v.at[4], v.at[5]), Pair<Element>::pack(v.at[6], v.at[7])};
}

/// Eight elements over `scale` as e4m3; magnitudes above 448 become 448, NaN stays NaN.
__device__ __forceinline__ uint2 pack_e4m3(const Floats& v, float scale) {
  const auto two = [&](int i) -> uint32_t { return linear::pack_e4m3(v.at[i] / scale, v.at[i + 1] / scale); };
  return {two(0) | two(2) << 16, two(4) | two(6) << 16};
}

/// Eight float32 that other rows read, too.
__device__ __forceinline__ Floats load_floats(const float* source) {
  const float4 low = __ldg(reinterpret_cast<const float4*>(source));
  const float4 high = __ldg(reinterpret_cast<const float4*>(source) + 1);
  return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}

}  // namespace vorta::norms

#endif  // VORTA_TRT_KERNELS_NORMS_VECTORS_CUH_
