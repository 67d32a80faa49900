// SPDX-License-Identifier: Apache-2.0
//
// K and V to 8 bits in one pass: a warp makes one chunk of 32 keys of K or of V, its scale included. Neighbouring warps
// take neighbouring heads of the same tokens, which lie side by side in memory.
#include "../kernel_launch.h"
#include "quantize.h"
#include "statistics.h"
#include "transform.cuh"

namespace vorta::fp8 {
namespace {

constexpr int kWarps = 4;
constexpr unsigned kAll = 0xffffffffu;
constexpr int kRowLanes = 16;  // lanes of one row; a warp has two rows at a time
constexpr int kPasses = kChunk * kRowLanes / 32;
constexpr float kLargestValue = 448.0f;   // of e4m3
constexpr float kLeastExponent = -60.0f;  // values below 2^-51 become zeros

/// kWords 32-bit words from global memory; 2 or 4.
template <int kWords>
__device__ __forceinline__ void load(uint32_t (&words)[kWords], const void* source) {
  if constexpr (kWords == 4) {
    const uint4 v = __ldg(static_cast<const uint4*>(source));
    words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
  } else {
    const uint2 v = __ldg(static_cast<const uint2*>(source));
    words[0] = v.x, words[1] = v.y;
  }
}

/// Token id of every lane's key of the chunk, -1 where there is none.
__device__ __forceinline__ int token_of_lane(const RoutedAttentionParams& problem, const Images& images, int route,
                                             int sample, int64_t head, int chunk) {
  const int lane = threadIdx.x % 32;
  const int video_chunks = images.video_chunks(route);
  if (chunk >= video_chunks) {
    const int row = (chunk - video_chunks) * kChunk + lane;
    const int valid = problem.text_tokens == 0 ? 0 : min(problem.text_length[sample], problem.text_tokens);
    return row < valid ? problem.video_tokens + row : -1;
  }
  if (route == VORTA_SLIDING) {
    int position[3];
    const int inside = images.tiles.locate(chunk, position) * kChunk + lane;
    return inside < problem.tiles.size_at(position) ? problem.tiles.token(position, inside) : -1;
  }
  const int row = chunk * kChunk + lane;
  if (route == VORTA_CORESET) {
    if (row >= problem.kept_tokens) return -1;
    return listed_token(problem, problem.kept_keys + head * problem.kept_tokens + row);
  }
  return row < problem.video_tokens ? row : -1;
}

/// Writes the image of a chunk of keys. Returns its scale.
template <class Element, int kHeadDim>
__device__ __forceinline__ float make_key_image(const RoutedAttentionParams& problem, const Images& images, int sample,
                                                int head, int token, unsigned char* image) {
  using Transform = RowTransform<Element, kHeadDim>;
  constexpr int kGroups = kChunk / Transform::kRows, kPieces = Transform::kPieces;
  const int row_in_group = threadIdx.x % 32 / Transform::kRowLanes;
  const int64_t head_of_all = int64_t{sample} * problem.heads + head;
  const Transform transform(threadIdx.x % 32);
  const int column = transform.first_channel();
  const uint16_t* factor = images.statistics_of(head_of_all, kHeadDim, kKeyFactor) + column;
  const uint16_t* offset = images.statistics_of(head_of_all, kHeadDim, kKeyOffset) + column;
  const auto* source = static_cast<const Element*>(problem.key.data) + sample * problem.key.batch_stride +
                       head * problem.key.head_stride + column;
  const unsigned present = __ballot_sync(kAll, token >= 0);
  uint4 words[kGroups][kPieces];
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    const int row_token = __shfl_sync(kAll, token, group * Transform::kRows + row_in_group);
    const auto* row = source + row_token * problem.key.token_stride;
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      words[group][piece] = uint4{};
      if (row_token >= 0)
        words[group][piece] = __ldg(reinterpret_cast<const uint4*>(row + piece * Transform::kPieceStride));
    }
  }
  uint32_t pairs[kGroups][Transform::kPairs];
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    asm volatile("" : "+l"(factor), "+l"(offset));  // else they stay in 32 registers from one group to the next
    const bool exists = present >> (group * Transform::kRows + row_in_group) & 1;
    transform(words[group], factor, offset, exists, pairs[group]);
  }
  const float largest = largest_of<32>(reinterpret_cast<uint32_t (&)[kGroups * Transform::kPairs]>(pairs));
  const float inverse = largest > 0.0f ? kLargestInt8 / largest : 0.0f;
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    const int row = group * Transform::kRows + row_in_group;
#pragma unroll
    for (int piece = 0; piece < Transform::kImagePieces; ++piece) {
      const int place = swizzled_piece<kHeadDim>(row, transform.image_piece(piece));
      *reinterpret_cast<uint4*>(image + row * kHeadDim + place * 16) = pack_int8(pairs[group] + 8 * piece, inverse);
    }
  }
  return largest / kLargestInt8;
}

/// Loads 32 rows, D / 16 elements of a row to a lane: row 2 i + lane / 16 in words[i], as bfloat16 less the mean.
template <class Element, int kWords>
__device__ __forceinline__ void load_values(uint32_t (&words)[kPasses][kWords], const TensorView& tensor,
                                            const uint16_t* mean, int sample, int head, int token) {
  const int lane = threadIdx.x % 32, column = lane % kRowLanes * (2 * kWords);
  const auto* source =
      static_cast<const Element*>(tensor.data) + sample * tensor.batch_stride + head * tensor.head_stride + column;
  const unsigned present = __ballot_sync(kAll, token >= 0);
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    const int row_token = __shfl_sync(kAll, token, 2 * i + lane / kRowLanes);
#pragma unroll
    for (int w = 0; w < kWords; ++w) words[i][w] = 0;
    if (row_token >= 0) load<kWords>(words[i], source + row_token * tensor.token_stride);
  }
  uint32_t shift[kWords];
  load<kWords>(shift, mean + column);
#pragma unroll
  for (int w = 0; w < kWords; ++w) shift[w] ^= 0x80008000u;
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      constexpr uint32_t kOne = 0x3f803f80u;
      const bool exists = present >> (2 * i + lane / kRowLanes) & 1;
      words[i][w] = scale_and_shift<Element>(words[i][w], kOne, exists ? shift[w] : 0);
    }
  }
}

__device__ __forceinline__ uint32_t pack_e4m3(float low, float high) {
  uint16_t result;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(result) : "f"(high), "f"(low));
  return result;
}

/// Writes the image of a chunk of values. Returns the exponent of its scale. In a row of 32 keys, byte
/// 16 g + 4 q + {0, 1} is key 16 g + 2 q + {0, 1}, and byte 16 g + 4 q + {2, 3} is key 16 g + 8 + 2 q + {0, 1}: these
/// are the keys that lane q of four has in an accumulator, in order.
template <class Element, int kHeadDim>
__device__ __forceinline__ float make_value_image(const RoutedAttentionParams& problem, const Images& images,
                                                  int sample, int head, int token, unsigned char* image,
                                                  uint4* staging) {
  constexpr int kWords = kHeadDim / 32, kColumns = kHeadDim / kRowLanes;
  const int lane = threadIdx.x % 32, odd = lane / kRowLanes;  // a lane has the even or the odd keys
  uint32_t words[kPasses][kWords];
  const uint16_t* mean = images.statistics_of(int64_t{sample} * problem.heads + head, kHeadDim, kValueMean);
  load_values<Element, kWords>(words, problem.value, mean, sample, head, token);
  const float largest = largest_of<32>(reinterpret_cast<uint32_t (&)[kPasses * kWords]>(words));
  float exponent = kLeastExponent;
  if (largest > 0.0f) exponent = fmaxf(ceilf(log2f(largest / kLargestValue)), kLeastExponent);
  const float inverse = exp2f(-exponent);
  // pairs[column][4 g + q]: own keys of 2 q and 8 + 2 q, from 16 g on.
  uint32_t pairs[kColumns][8];
#pragma unroll
  for (int w = 0; w < kWords; ++w) {
#pragma unroll
    for (int place = 0; place < 8; ++place) {
      const int i = place / 4 * 8 + place % 4;
      const float2 low = unpack_bf16(words[i][w]), high = unpack_bf16(words[i + 4][w]);
      pairs[2 * w][place] = pack_e4m3(low.x * inverse, high.x * inverse);
      pairs[2 * w + 1][place] = pack_e4m3(low.y * inverse, high.y * inverse);
    }
  }
  // The lane of the even keys takes the first half of the columns, that of the odd ones the second.
#pragma unroll
  for (int column = 0; column < kColumns / 2; ++column) {
    uint32_t row[8];
#pragma unroll
    for (int place = 0; place < 8; place += 2) {
      const uint32_t first = pairs[column][place] | pairs[column][place + 1] << 16;
      const uint32_t second = pairs[column + kColumns / 2][place] | pairs[column + kColumns / 2][place + 1] << 16;
      const uint32_t received = __shfl_xor_sync(kAll, odd ? first : second, kRowLanes);
      const uint32_t even_keys = odd ? received : first, odd_keys = odd ? second : received;
      row[place] = __byte_perm(even_keys, odd_keys, 0x5140);
      row[place + 1] = __byte_perm(even_keys, odd_keys, 0x7362);
    }
    const int d = lane % kRowLanes * kColumns + odd * (kColumns / 2) + column;
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      staging[2 * d + swizzled_piece<kChunk>(d, g)] = uint4{row[4 * g], row[4 * g + 1], row[4 * g + 2], row[4 * g + 3]};
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kHeadDim * kChunk / 512; ++i)
    reinterpret_cast<uint4*>(image)[i * 32 + lane] = staging[i * 32 + lane];
  return exponent;
}

template <class Element, int kHeadDim>
__global__ void __launch_bounds__(kWarps * 32, kHeadDim == 128 ? 3 : 5)
    quantize_kernel(const __grid_constant__ RoutedAttentionParams problem, const __grid_constant__ Images images) {
  __shared__ uint4 staging[kWarps][kHeadDim * kChunk / 16];
  const int64_t heads = int64_t{problem.batch} * problem.heads;
  const int64_t task = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const int chunk = static_cast<int>(task / heads);
  const int64_t head = task - chunk * heads;
  if (chunk >= images.chunks) return;  // whole warps only
  const int route = problem.routes[head];
  const int last = images.video_chunks(route) + chunks_of(problem.text_tokens);
  if (chunk > last) return;
  const int sample = static_cast<int>(head / problem.heads), in_sample = static_cast<int>(head % problem.heads);
  const int token = token_of_lane(problem, images, route, sample, head, chunk);

  const int64_t index = head * images.chunks + chunk;
  constexpr int kBytes = kChunk * kHeadDim;
  ChunkNote* note = images.notes + index;
  if (blockIdx.y == 0) {
    const float scale =
        make_key_image<Element, kHeadDim>(problem, images, sample, in_sample, token, images.key + index * kBytes);
    if (threadIdx.x % 32 == 0) note->scale = scale;
  } else {
    const float exponent = make_value_image<Element, kHeadDim>(
        problem, images, sample, in_sample, token, images.value + index * kBytes, staging[threadIdx.x / 32]);
    const int valid = __popc(__ballot_sync(kAll, token >= 0));
    if (threadIdx.x % 32 != 0) return;
    note->exponent = exponent;
    note->inverse = exp2f(-exponent);
    note->valid = valid;
  }
}

template <class Element>
cudaError_t launch(const RoutedAttentionParams& problem, const Images& images, cudaStream_t stream) {
  const int64_t tasks = int64_t{problem.batch} * problem.heads * images.chunks;
  const auto blocks = static_cast<unsigned>((tasks + kWarps - 1) / kWarps);
  const auto kernel = problem.head_dim == 64 ? quantize_kernel<Element, 64> : quantize_kernel<Element, 128>;
  return launch_kernel({dim3(blocks, 2), kWarps * 32, 0, stream}, kernel, problem, images);
}

}  // namespace

cudaError_t launch_quantization(const RoutedAttentionParams& problem, vorta_dtype dtype, cudaStream_t stream) {
  const Images images = make_images(problem);
  if (cudaError_t error = launch_statistics(problem, images, dtype, stream)) return error;
  return dtype == VORTA_FLOAT16 ? launch<cutlass::half_t>(problem, images, stream)
                                : launch<cutlass::bfloat16_t>(problem, images, stream);
}

}  // namespace vorta::fp8
