// SPDX-License-Identifier: Apache-2.0
#include "tensor_maps.h"

#include <cstdint>

namespace vorta::sm90 {
namespace {

constexpr int kColumns = 64;          // of 2 bytes: the 128 bytes of a swizzle row
constexpr uint64_t kAnyStride = 128;  // of an axis of one entry, and of one that is broadcast

using Encode = decltype(&cuTensorMapEncodeTiled);

/// The driver's function, found at run time: the library links no libcuda and loads on machines without one.
cudaError_t find_encode(Encode* encode) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  if (error != cudaSuccess) return error;
  if (found != cudaDriverEntryPointSuccess) return cudaErrorInsufficientDriver;
  *encode = reinterpret_cast<Encode>(function);
  return cudaSuccess;
}

struct Axis {
  int64_t size;
  int64_t stride;  // in elements
  int box;
};

class Encoder {
 public:
  Encoder(Encode encode, vorta_dtype dtype, int head_dim)
      : encode_(encode),
        type_(dtype == VORTA_FLOAT16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16),
        head_dim_(head_dim) {}

  /// A map over `axes`, to which the head dimension is put in front.
  template <int kAxes>
  cudaError_t operator()(CUtensorMap* map, const void* data, const Axis (&axes)[kAxes]) const {
    cuuint64_t size[kAxes + 1] = {static_cast<cuuint64_t>(head_dim_)};
    cuuint64_t stride[kAxes];
    cuuint32_t box[kAxes + 1] = {kColumns};
    cuuint32_t element_stride[kAxes + 1] = {1};
    for (int i = 0; i < kAxes; ++i) {
      const bool moves = axes[i].size > 1 && axes[i].stride != 0;  // else the kernel's coordinate is always 0
      size[i + 1] = axes[i].stride == 0 ? 1 : axes[i].size;
      stride[i] = moves ? 2 * axes[i].stride : kAnyStride;
      box[i + 1] = axes[i].box;
      element_stride[i + 1] = 1;
    }
    const CUresult result = encode_(map, type_, kAxes + 1, const_cast<void*>(data), size, stride, box, element_stride,
                                    CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                    CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
  }

 private:
  Encode encode_;
  CUtensorMapDataType type_;
  int head_dim_;
};

cudaError_t make_key_maps(const Encoder& encode, const AttentionParams& params, const TensorView& tensor,
                          const void* compact, int keys, KeyMaps* maps) {
  const RoutedAttentionParams& problem = params.problem;
  const BoxPartition& tiles = problem.tiles;
  const int64_t tokens = int64_t{problem.video_tokens} + problem.text_tokens;
  const int64_t width = tiles.row_stride, rows = problem.video_tokens / width;
  const Axis head{problem.heads, tensor.head_stride, 1}, sample{problem.batch, tensor.batch_stride, 1};

  if (cudaError_t error = encode(&maps->flat, tensor.data, {{tokens, tensor.token_stride, keys}, head, sample})) {
    return error;
  }
  for (int shape = 0; shape < WindowCut::kShapes; ++shape) {
    for (int i = 0; i < WindowCut::kParts; ++i) {
      const WindowPart& part = params.cut.part[shape][i];
      if (part.height == 0) continue;
      if (cudaError_t error = encode(&maps->grid[shape][i], tensor.data,
                                     {{width, tensor.token_stride, part.box_width},
                                      {rows, tensor.token_stride * width, part.box_height},
                                      head,
                                      sample})) {
        return error;
      }
    }
  }
  const int64_t compact_tokens = int64_t{problem.kept_tokens} + problem.text_tokens, d = problem.head_dim;
  return encode(&maps->compact, compact,
                {{compact_tokens, d, keys},
                 {problem.heads, compact_tokens * d, 1},
                 {problem.batch, problem.heads * compact_tokens * d, 1}});
}

}  // namespace

cudaError_t make_tensor_maps(AttentionParams& params, vorta_dtype dtype, int keys) {
  Encode function = nullptr;
  if (cudaError_t error = find_encode(&function)) return error;
  const RoutedAttentionParams& problem = params.problem;
  const Encoder encode(function, dtype, problem.head_dim);
  if (cudaError_t error = make_key_maps(encode, params, problem.key, problem.compact_key, keys, &params.key)) {
    return error;
  }
  return make_key_maps(encode, params, problem.value, problem.compact_value, keys, &params.value);
}

}  // namespace vorta::sm90
