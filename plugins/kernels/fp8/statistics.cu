// SPDX-License-Identifier: Apache-2.0
//
// Means and magnitudes of the channels of a head, from up to 1,024 of its video tokens. Any numbers would do, since the
// transforms that they make change no output (images.h): a sample is enough, values that are not finite count as 0.
#include <cfloat>

#include "../kernel_launch.h"
#include "elements.cuh"
#include "statistics.h"

namespace vorta::fp8 {
namespace {

constexpr int kChannels = 16;               // of a thread block: a sector of 32 bytes of every row
constexpr int kTokenLanes = kChannels / 8;  // 16 bytes of the token to each
constexpr int kThreads = 256;
constexpr int kTokens = kThreads / kTokenLanes;  // at a time
constexpr int kSample = 1024;
constexpr float kLargestBalance = 12.0f;  // log2
/// A mean is used if it is at least this many times its standard error. Others, such as means that one huge token
/// makes, are not used.
constexpr float kLeastSignificance = 2.0f;

/// The `index`-th token of the sample: one of every stretch of the video, not at the same place in each.
__device__ int sampled_token(int index, int sample, int video_tokens) {
  if (sample == video_tokens) return index;
  const uint32_t place = (index * 2654435761u) >> 16;  // of 65536
  const auto position = (static_cast<uint64_t>(index) << 16 | place) * static_cast<uint64_t>(video_tokens);
  return static_cast<int>((position / static_cast<uint32_t>(sample)) >> 16);
}

enum Sum : int { kQuerySquare, kKey, kKeySquare, kValue, kValueSquare, kSums };

/// Adds the lane's eight channels of a token.
template <class Element>
__device__ __forceinline__ void add(const TensorView& tensor, int64_t position, float* sum, float (&squares)[8]) {
  const uint4 v = __ldg(reinterpret_cast<const uint4*>(static_cast<const Element*>(tensor.data) + position));
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int w = 0; w < 4; ++w) {
    const float2 pair = unpack<Element>(words[w]);
    const float x[2] = {pair.x, pair.y};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float finite = fabsf(x[i]) <= FLT_MAX ? x[i] : 0.0f;
      if (sum != nullptr) sum[2 * w + i] += finite;
      squares[2 * w + i] = fmaf(finite, finite, squares[2 * w + i]);
    }
  }
}

__device__ uint16_t bits(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }

/// The mean if it is significant, else 0. `square` is the mean of the squares; `deviation` receives the standard
/// deviation.
__device__ float significant_mean(float mean, float square, int sample, float& deviation) {
  deviation = sqrtf(fmaxf(square - mean * mean, 0.0f));
  const bool taken = fabsf(mean) * sqrtf(static_cast<float>(sample)) >= kLeastSignificance * deviation;
  return taken && square <= FLT_MAX ? mean : 0.0f;
}

/// Rounds the mean to a multiple of two steps of the values around it. Values less such a mean fall on both sides of
/// the steps of e4m3 alike; with any other mean their rounding errors would have a mean of their own, which no sum over
/// keys takes away.
__device__ float on_lattice(float mean, float deviation) {
  const float largest = fabsf(mean) + 2.0f * deviation;
  if (!(largest >= FLT_MIN * 256.0f)) return 0.0f;
  const float step = exp2f(floorf(log2f(largest)) - 6.0f);
  return rintf(mean / step) * step;
}

__device__ void write_channel(const Images& images, int64_t head, int head_dim, int channel, const float (&sums)[kSums],
                              int sample) {
  const float count = 1.0f / static_cast<float>(sample);
  float deviation;
  const float key_mean = significant_mean(sums[kKey] * count, sums[kKeySquare] * count, sample, deviation);
  const float query = sums[kQuerySquare] * count, key = sums[kKeySquare] * count - key_mean * key_mean;
  float balance = 0.0f;  // log2 of the factor of K
  if (query > 0.0f || key > 0.0f) balance = rintf(0.25f * (log2f(query) - log2f(fmaxf(key, 0.0f))));
  if (isnan(balance)) balance = 0.0f;
  balance = fminf(fmaxf(balance, -kLargestBalance), kLargestBalance);
  const float sign = (channel * 2654435761u) >> 16 & 1 ? -1.0f : 1.0f;
  const float factor = sign * exp2f(balance);
  const auto store = [&](StatisticsRow row, float x) { images.statistics_of(head, head_dim, row)[channel] = bits(x); };
  store(kKeyFactor, factor);
  store(kKeyOffset, -key_mean * factor);
  store(kQueryFactor, sign * exp2f(-balance));
  const float value_mean = significant_mean(sums[kValue] * count, sums[kValueSquare] * count, sample, deviation);
  store(kValueMean, on_lattice(value_mean, deviation));
}

template <class Element>
__global__ void __launch_bounds__(kThreads, 2)
    statistics_kernel(const __grid_constant__ RoutedAttentionParams problem, const __grid_constant__ Images images) {
  __shared__ float shared[kThreads / 32][kSums][kChannels];
  const int slices = problem.head_dim / kChannels;
  const int64_t head = blockIdx.x / slices;
  const int first_channel = blockIdx.x % slices * kChannels, lane = threadIdx.x % 32;
  const int64_t batch = head / problem.heads, in_batch = head % problem.heads;
  const int channel = first_channel + threadIdx.x % kTokenLanes * 8;
  const auto offset = [&](const TensorView& tensor, int64_t token) {
    return batch * tensor.batch_stride + token * tensor.token_stride + in_batch * tensor.head_stride + channel;
  };

  const int sample = min(kSample, problem.video_tokens);
  float sums[kSums][8] = {};
#pragma unroll 4
  for (int i = threadIdx.x / kTokenLanes; i < sample; i += kTokens) {
    const int64_t token = sampled_token(i, sample, problem.video_tokens);
    add<Element>(problem.query, offset(problem.query, token), nullptr, sums[kQuerySquare]);
    add<Element>(problem.key, offset(problem.key, token), sums[kKey], sums[kKeySquare]);
    add<Element>(problem.value, offset(problem.value, token), sums[kValue], sums[kValueSquare]);
  }
#pragma unroll
  for (int sum = 0; sum < kSums; ++sum) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float x = sums[sum][i];
#pragma unroll
      for (int bit = 16; bit >= kTokenLanes; bit /= 2) x += __shfl_xor_sync(0xffffffffu, x, bit);
      if (lane < kTokenLanes) shared[threadIdx.x / 32][sum][lane * 8 + i] = x;
    }
  }
  __syncthreads();
  if (threadIdx.x >= kChannels) return;
  float total[kSums] = {};
#pragma unroll
  for (int sum = 0; sum < kSums; ++sum) {
    for (int warp = 0; warp < kThreads / 32; ++warp) total[sum] += shared[warp][sum][threadIdx.x];
  }
  write_channel(images, head, problem.head_dim, first_channel + static_cast<int>(threadIdx.x), total, sample);
}

}  // namespace

cudaError_t launch_statistics(const RoutedAttentionParams& problem, const Images& images, vorta_dtype dtype,
                              cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(int64_t{problem.batch} * problem.heads * (problem.head_dim / kChannels));
  const auto kernel =
      dtype == VORTA_FLOAT16 ? statistics_kernel<cutlass::half_t> : statistics_kernel<cutlass::bfloat16_t>;
  return launch_kernel({dim3(blocks), kThreads, 0, stream}, kernel, problem, images);
}

}  // namespace vorta::fp8
