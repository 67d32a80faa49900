// SPDX-License-Identifier: Apache-2.0
//
// A warp's 16 query rows, gathered from global memory, transformed as the keys were, and rounded to int8, every row
// with a scale of its own.
#ifndef VORTA_TRT_KERNELS_SM89_FP8_QUERY_ROWS_CUH_
#define VORTA_TRT_KERNELS_SM89_FP8_QUERY_ROWS_CUH_

#include "../fp8/transform.cuh"
#include "shared_storage.cuh"

namespace vorta::sm89_fp8 {

/// Loads this warp's rows of `shared.row_token` into `shared.query`. `factor`: factors of the head's channels; `scale`:
/// receives the scales of this thread's two rows.
template <class Traits>
__device__ void load_queries(const RoutedAttentionParams& problem, const uint16_t* factor,
                             SharedStorage<Traits>& shared, float (&scale)[2]) {
  using Element = typename Traits::Element;
  using Transform = fp8::RowTransform<Element, Traits::kHeadDim>;
  static_assert(Traits::kRowsPerWarp == 2 * Transform::kRows && Transform::kRowLanes == 4,
                "the lanes that transform a row are those of its accumulator");
  const Transform transform(threadIdx.x % 32);
  const int in_group = threadIdx.x % 32 / Transform::kRowLanes;
  const int first_row = threadIdx.x / 32 * Traits::kRowsPerWarp + in_group;
  const auto* query = static_cast<const Element*>(problem.query.data) + blockIdx.z * problem.query.batch_stride +
                      blockIdx.y * problem.query.head_stride + transform.first_channel();
  const int place = fp8::swizzled_piece<Traits::kHeadDim>(in_group, transform.image_piece(0)) * 16;
#pragma unroll
  for (int pass = 0; pass < 2; ++pass) {
    const int row = first_row + pass * Transform::kRows, token = shared.row_token[row];
    const auto* source = query + token * problem.query.token_stride;
    uint4 words[Transform::kPieces];  // zeros for rows that are not stored
#pragma unroll
    for (int piece = 0; piece < Transform::kPieces; ++piece) {
      words[piece] = uint4{};
      if (token >= 0) words[piece] = __ldg(reinterpret_cast<const uint4*>(source + piece * Transform::kPieceStride));
    }
    uint32_t pairs[Transform::kPairs];
    transform(words, factor + transform.first_channel(), nullptr, true, pairs);
    const float largest = fp8::largest_of<Transform::kRowLanes>(pairs);
    const float inverse = largest > 0.0f ? fp8::kLargestInt8 / largest : 0.0f;
    unsigned char* image = shared.query + row * Traits::kHeadDim;
#pragma unroll
    for (int piece = 0; piece < Transform::kImagePieces; ++piece) {
      *reinterpret_cast<uint4*>(image + (place ^ 16 * piece)) = fp8::pack_int8(pairs + 8 * piece, inverse);
    }
    scale[pass] = largest * (Transform::kProductFactor / fp8::kLargestInt8);
  }
  __syncwarp();
}

}  // namespace vorta::sm89_fp8

#endif  // VORTA_TRT_KERNELS_SM89_FP8_QUERY_ROWS_CUH_
