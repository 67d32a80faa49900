// SPDX-License-Identifier: Apache-2.0
//
// K and V to 8 bits in one pass: a warp makes one chunk of 32 keys, its scales included. Neighbouring warps take
// neighbouring heads of the same tokens, which lie side by side in memory.
#include "../kernel_launch.h"
#include "elements.cuh"
#include "quantize.h"

namespace vorta::sm90_fp8 {
namespace {

constexpr int kWarps = 8;
constexpr unsigned kAll = 0xffffffffu;
constexpr int kRowLanes = 16;  // lanes of one row; a warp has two rows at a time
constexpr int kPasses = kChunk * kRowLanes / 32;
constexpr float kLargestValue = 448.0f;  // of e4m3
constexpr float kLargestKey = 127.0f;
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
    const int tile = chunk / images.tile_chunks, inside = (chunk - tile * images.tile_chunks) * kChunk + lane;
    if (inside >= problem.tiles.tokens.divisor) return -1;
    int position[3];
    problem.tiles.split(tile, position);
    return problem.tiles.token(position, inside);
  }
  const int row = chunk * kChunk + lane;
  if (route == VORTA_CORESET) {
    return row < problem.kept_tokens ? problem.kept_keys[head * problem.kept_tokens + row] : -1;
  }
  return row < problem.video_tokens ? row : -1;
}

/// Loads 32 rows, D / 16 elements of a row to a lane: row 2 i + lane / 16 in words[i]. Returns their largest magnitude.
template <class Element, int kWords>
__device__ __forceinline__ float load_rows(uint32_t (&words)[kPasses][kWords], const TensorView& tensor, int sample,
                                           int head, int token) {
  const int lane = threadIdx.x % 32;
  const auto* source = static_cast<const Element*>(tensor.data) + sample * tensor.batch_stride +
                       head * tensor.head_stride + lane % kRowLanes * (2 * kWords);
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    const int row_token = __shfl_sync(kAll, token, 2 * i + lane / kRowLanes);
#pragma unroll
    for (int w = 0; w < kWords; ++w) words[i][w] = 0;
    if (row_token >= 0) load<kWords>(words[i], source + row_token * tensor.token_stride);
  }
  uint32_t magnitudes = 0;  // of either half of the words; without the sign they are ordered as integers
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      magnitudes = __vmaxu2(magnitudes, words[i][w] & 0x7fff7fffu);
      asm volatile("" : "+r"(words[i][w]));  // else the compiler keeps every element as a float, in twice the registers
    }
  }
  const float2 pair = unpack<Element>(magnitudes);
  float largest = fmaxf(pair.x, pair.y);
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, bit));
  return largest;
}

/// Returns the scale.
template <class Element, int kHeadDim>
__device__ __forceinline__ float make_key_image(const TensorView& tensor, int sample, int head, int token,
                                                unsigned char* image) {
  constexpr int kWords = kHeadDim / 32, kBytes = kHeadDim / kRowLanes;
  const int lane = threadIdx.x % 32, column = lane % kRowLanes * kBytes;
  uint32_t words[kPasses][kWords];
  const float largest = load_rows<Element, kWords>(words, tensor, sample, head, token);
  const float inverse = largest > 0.0f ? kLargestKey / largest : 0.0f;
#pragma unroll
  for (int i = 0; i < kPasses; ++i) {
    const int row = 2 * i + lane / kRowLanes;
    uint32_t bytes[kBytes / 4];
#pragma unroll
    for (int w = 0; w < kBytes / 4; ++w) {
      const float2 low = unpack<Element>(words[i][2 * w]), high = unpack<Element>(words[i][2 * w + 1]);
      bytes[w] = pack_int8(low, high, inverse);
    }
    auto* target = image + row * kHeadDim + swizzled_piece<kHeadDim>(row, column / 16) * 16 + column % 16;
    if constexpr (kBytes == 8) {
      *reinterpret_cast<uint2*>(target) = uint2{bytes[0], bytes[1]};
    } else {
      *reinterpret_cast<uint32_t*>(target) = bytes[0];
    }
  }
  return largest / kLargestKey;
}

__device__ __forceinline__ uint32_t pack_e4m3(float low, float high) {
  uint16_t result;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(result) : "f"(high), "f"(low));
  return result;
}

/// Returns the exponent. In a row of 32 keys byte 16 g + 4 q + {0, 1} is key 16 g + 2 q + {0, 1}, and byte
/// 16 g + 4 q + {2, 3} is key 16 g + 8 + 2 q + {0, 1}: what lane q of four has of an accumulator, in order.
template <class Element, int kHeadDim>
__device__ __forceinline__ float make_value_image(const TensorView& tensor, int sample, int head, int token,
                                                  unsigned char* image, uint4* staging) {
  constexpr int kWords = kHeadDim / 32, kColumns = kHeadDim / kRowLanes;
  const int lane = threadIdx.x % 32, odd = lane / kRowLanes;  // a lane has the even or the odd keys
  uint32_t words[kPasses][kWords];
  const float largest = load_rows<Element, kWords>(words, tensor, sample, head, token);
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
      const float2 low = unpack<Element>(words[i][w]), high = unpack<Element>(words[i + 4][w]);
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
__global__ void __launch_bounds__(kWarps * 32, 2)
    quantize_kernel(const __grid_constant__ RoutedAttentionParams problem, const __grid_constant__ Images images) {
  __shared__ uint4 staging[kWarps][kHeadDim * kChunk / 16];
  const int64_t heads = int64_t{problem.batch} * problem.heads;
  const int64_t task = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  const int chunk = static_cast<int>(task / heads);
  const int64_t head = task - chunk * heads;
  if (chunk >= images.chunks) return;  // whole warps only
  const int route = problem.routes[head];
  const int last = images.video_chunks(route) + static_cast<int>(chunks_of(problem.text_tokens));
  if (chunk > last) return;
  const int sample = static_cast<int>(head / problem.heads), in_sample = static_cast<int>(head % problem.heads);
  const int token = token_of_lane(problem, images, route, sample, head, chunk);

  const int64_t index = head * images.chunks + chunk;
  constexpr int kBytes = kChunk * kHeadDim;
  ChunkNote note;
  note.scale = make_key_image<Element, kHeadDim>(problem.key, sample, in_sample, token, images.key + index * kBytes);
  note.exponent = make_value_image<Element, kHeadDim>(problem.value, sample, in_sample, token,
                                                      images.value + index * kBytes, staging[threadIdx.x / 32]);
  note.inverse = exp2f(-note.exponent);
  note.valid = __popc(__ballot_sync(kAll, token >= 0));
  if (threadIdx.x % 32 == 0) images.notes[index] = note;
}

template <class Element>
cudaError_t launch(const RoutedAttentionParams& problem, cudaStream_t stream) {
  const Images images = make_images(problem);
  const int64_t tasks = int64_t{problem.batch} * problem.heads * images.chunks;
  const auto blocks = static_cast<unsigned>((tasks + kWarps - 1) / kWarps);
  const auto kernel = problem.head_dim == 64 ? quantize_kernel<Element, 64> : quantize_kernel<Element, 128>;
  return launch_kernel({dim3(blocks), kWarps * 32, 0, stream}, kernel, problem, images);
}

}  // namespace

cudaError_t launch_quantization(const RoutedAttentionParams& problem, vorta_dtype dtype, cudaStream_t stream) {
  return dtype == VORTA_FLOAT16 ? launch<cutlass::half_t>(problem, stream)
                                : launch<cutlass::bfloat16_t>(problem, stream);
}

}  // namespace vorta::sm90_fp8
