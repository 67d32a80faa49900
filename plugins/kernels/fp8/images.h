// SPDX-License-Identifier: Apache-2.0
//
// K and V in 8 bits: where the chunks of a head lie, and what a chunk holds.
//
// key: int8 [32][D]. The transformed key is int8 * scale. The 16-byte pieces of a row are swizzled as wgmma wants rows
// of D bytes.
//
// value: e4m3 [D][32]. These are the values less their mean, times 2^-exponent. They are transposed, because an 8-bit
// wgmma wants its k axis contiguous, and in the order of keys that make_value_image() in quantize.cu describes.
//
// Q and K are int8 because e4m3 has 3 bits of mantissa, an rms error of 2.6 %: with all of Q, K, P and V in e4m3 the
// output is off by 5.3 % on unit-normal inputs, with int8 for the logits by 3.9 %. Tensor cores take both at one rate.
//
// Outliers. A row or a chunk has one scale, so one channel that is much larger than the others would leave them few
// bits. Q, K and V are transformed in ways that change no output:
//
//   q.k   = (H (q / s)) . (H (s k)) / D    s levels each channel's Q and K (a power of two with a random sign), H, the
//                                          Hadamard matrix, spreads what is left over all channels
//   softmax of q.k = that of q.(k - m_K)   whatever vector m_K is, if all keys of a row have the same
//   P V   = m_V + P (V - m_V)              likewise; small weights that are rounded to 0 then lose a part of V - m_V,
//                                          which averages out, and nothing of the mean
//
// statistics.cu takes m_K, m_V and s from a sample of the tokens. The columns of transformed rows are in another order,
// which transform.cuh defines; it is the same for Q and K.
#ifndef VORTA_TRT_KERNELS_FP8_IMAGES_H_
#define VORTA_TRT_KERNELS_FP8_IMAGES_H_

#include "../params.h"
#include "chunks.h"

namespace vorta::fp8 {

struct alignas(kChunkNoteBytes) ChunkNote {
  float scale;     // of the keys
  float exponent;  // of the values' scale, an integer
  float inverse;   // 2^-exponent
  int valid;       // leading keys that exist; the others are zeros
};

/// Rows of the statistics of a head's channels; each row has D bfloat16 numbers.
enum StatisticsRow : int { kKeyFactor, kKeyOffset, kQueryFactor, kValueMean };
static_assert(kValueMean + 1 == kStatisticsRows);

struct Images {
  unsigned char *key, *value;         // [B, N, chunks, 32 * D]
  ChunkNote* notes;                   // [B, N, chunks]
  uint16_t* statistics;               // bfloat16 [B, N, kStatisticsRows, D]
  int chunks;                         // reserved for a head
  int raster_chunks, coreset_chunks;  // of the video tokens of a head, by its route
  TileChunks tiles;                   // those of a sliding head

  /// Video chunks of a head; its text follows, then a chunk of no keys.
  CUTLASS_HOST_DEVICE int video_chunks(int route) const {
    return route == VORTA_CORESET ? coreset_chunks : (route == VORTA_SLIDING ? tiles.total : raster_chunks);
  }

  /// Chunks of the window that starts at token `origin` of each axis.
  CUTLASS_HOST_DEVICE int window_chunks(const RoutedAttentionParams& problem, const int (&origin)[3]) const {
    const int tile[3] = {origin[0] / tiles.extent[0], origin[1] / tiles.extent[1], origin[2] / tiles.extent[2]};
    return tiles.of_window(tile, problem.window);
  }

  /// `head`: sample * N + head.
  CUTLASS_HOST_DEVICE uint16_t* statistics_of(int64_t head, int head_dim, StatisticsRow row) const {
    return statistics + (head * kStatisticsRows + row) * head_dim;
  }
};

inline Images make_images(const RoutedAttentionParams& problem) {
  Images images{};
  images.key = static_cast<unsigned char*>(problem.chunk_keys);
  images.value = static_cast<unsigned char*>(problem.chunk_values);
  images.notes = static_cast<ChunkNote*>(problem.chunk_notes);
  images.statistics = static_cast<uint16_t*>(problem.head_statistics);
  images.chunks = problem.chunks;
  images.raster_chunks = chunks_of(problem.video_tokens);
  images.coreset_chunks = chunks_of(problem.kept_tokens);
  images.tiles = TileChunks(problem.tiles);
  return images;
}

/// Where the 16-byte piece of a row stands in a K-major tile of rows of kRowBytes, swizzled over kRowBytes.
template <int kRowBytes>
CUTLASS_HOST_DEVICE constexpr int swizzled_piece(int row, int piece) {
  constexpr int kPieces = kRowBytes / 16;        // 8, 4 or 2
  return piece ^ (row * kPieces / 8 % kPieces);  // the address bits from 7 on, onto those from 4 on
}

}  // namespace vorta::fp8

#endif  // VORTA_TRT_KERNELS_FP8_IMAGES_H_
