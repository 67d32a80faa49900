// SPDX-License-Identifier: Apache-2.0
//
// K and V in 8 bits: where the chunks of a head stand, and what is in one.
//
//   key    int8 [32][D]: key = int8 * scale; 16-byte pieces of a row swizzled as wgmma wants rows of D bytes
//   value  e4m3 [D][32]: the transposed values * 2^-exponent, since an 8-bit wgmma wants its k axis contiguous, in the
//          order of keys that make_value_image() in quantize.cu describes
//
// Q and K are int8 because e4m3 has 3 bits of mantissa, an rms error of 2.6 %: with all of Q, K, P and V in e4m3 the
// output is off by 5.3 % on unit-normal inputs, with int8 for the logits by 3.9 %. Tensor cores take both at one rate.
#ifndef VORTA_TRT_KERNELS_SM90_FP8_IMAGES_H_
#define VORTA_TRT_KERNELS_SM90_FP8_IMAGES_H_

#include "../params.h"
#include "block_shape.h"

namespace vorta::sm90_fp8 {

struct alignas(kChunkNoteBytes) ChunkNote {
  float scale;     // of the keys
  float exponent;  // of the values' scale, an integer
  float inverse;   // 2^-exponent
  int valid;       // leading keys that exist; the others are zeros
};

struct Images {
  unsigned char *key, *value;                         // [B, N, chunks, 32 * D]
  ChunkNote* notes;                                   // [B, N, chunks]
  int chunks;                                         // reserved for a head
  int raster_chunks, coreset_chunks, sliding_chunks;  // of the video tokens of a head, by its route
  int tile_chunks;                                    // of a tile of a sliding head

  /// Video chunks of a head; its text follows, then a chunk of no keys.
  __host__ __device__ int video_chunks(int route) const {
    return route == VORTA_CORESET ? coreset_chunks : (route == VORTA_SLIDING ? sliding_chunks : raster_chunks);
  }
};

inline Images make_images(const RoutedAttentionParams& problem) {
  Images images{};
  images.key = static_cast<unsigned char*>(problem.chunk_keys);
  images.value = static_cast<unsigned char*>(problem.chunk_values);
  images.notes = static_cast<ChunkNote*>(problem.chunk_notes);
  images.chunks = problem.chunks;
  images.tile_chunks = static_cast<int>(chunks_of(problem.tiles.tokens.divisor));
  images.raster_chunks = static_cast<int>(chunks_of(problem.video_tokens));
  images.coreset_chunks = static_cast<int>(chunks_of(problem.kept_tokens));
  images.sliding_chunks = problem.tiles.count() * images.tile_chunks;
  return images;
}

/// Where the 16-byte piece of a row stands in a K-major tile of rows of kRowBytes, swizzled over kRowBytes.
template <int kRowBytes>
__host__ __device__ constexpr int swizzled_piece(int row, int piece) {
  constexpr int kPieces = kRowBytes / 16;        // 8, 4 or 2
  return piece ^ (row * kPieces / 8 % kPieces);  // the address bits from 7 on, onto those from 4 on
}

}  // namespace vorta::sm90_fp8

#endif  // VORTA_TRT_KERNELS_SM90_FP8_IMAGES_H_
