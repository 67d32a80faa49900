// SPDX-License-Identifier: Apache-2.0
#include "tensor_maps.h"

#include <cstdint>
#include <cstdio>

#include "../cuda_error.h"
#include "../kernel_path.h"
#include "../last_error.h"

namespace vorta::sm90 {
namespace {

constexpr int kColumns = 64;          // of 2 bytes: the 128 bytes of a swizzle row
constexpr uint64_t kAnyStride = 128;  // of an axis of one entry, and of one that is broadcast

using Encode = decltype(&cuTensorMapEncodeTiled);

/// The driver's function, found at run time: the library links no libcuda and loads on machines without one.
vorta_status find_encode(Encode* encode) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  if (cudaError_t error =
          cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found)) {
    return report("look-up of cuTensorMapEncodeTiled", error);
  }
  if (found != cudaDriverEntryPointSuccess) {
    return fail(VORTA_UNSUPPORTED,
                "the driver has no cuTensorMapEncodeTiled%s: the kernels for compute capability 9.0 need a driver of "
                "CUDA 12.0 or newer; update it, or take the slower kernels with %s=sm80",
                found == cudaDriverEntryPointVersionNotSufficent ? " of this version" : "", kKernelPathVariable);
  }
  *encode = reinterpret_cast<Encode>(function);
  return VORTA_OK;
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

  /// A map over `axes`, to which the head dimension is put in front. `what`: the tensor, for a message.
  template <int kAxes>
  vorta_status operator()(const char* what, CUtensorMap* map, const void* data, const Axis (&axes)[kAxes]) const {
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
    if (result == CUDA_SUCCESS) return VORTA_OK;
    char text[256];
    int length = std::snprintf(text, sizeof(text), "%d", head_dim_);
    for (int i = 0; i < kAxes && length < static_cast<int>(sizeof(text)); ++i) {
      length += std::snprintf(text + length, sizeof(text) - length, ", %llu (stride %llu B, box %u)",
                              static_cast<unsigned long long>(size[i + 1]), static_cast<unsigned long long>(stride[i]),
                              box[i + 1]);
    }
    return fail(VORTA_CUDA_ERROR,
                "tensor map of %s at %p, sizes %s: cuTensorMapEncodeTiled refuses it with error %d; addresses and "
                "strides have to be multiples of 16 bytes, strides below 2^40, sizes at most 2^32, boxes at most 256; "
                "report it, and take the slower kernels with %s=sm80 meanwhile",
                what, data, text, static_cast<int>(result), kKernelPathVariable);
  }

 private:
  Encode encode_;
  CUtensorMapDataType type_;
  int head_dim_;
};

vorta_status make_key_maps(const char* what, const Encoder& encode, const AttentionParams& params,
                           const TensorView& tensor, const void* compact, int keys, KeyMaps* maps) {
  const RoutedAttentionParams& problem = params.problem;
  const BoxPartition& tiles = problem.tiles;
  const int64_t tokens = problem.key_tokens;
  const int64_t width = tiles.row_stride, rows = problem.video_tokens / width;
  const Axis head{problem.heads, tensor.head_stride, 1}, sample{problem.batch, tensor.batch_stride, 1};

  if (vorta_status status =
          encode(what, &maps->flat, tensor.data, {{tokens, tensor.token_stride, keys}, head, sample})) {
    return status;
  }
  for (int shape = 0; shape < WindowCut::kShapes; ++shape) {
    for (int i = 0; i < WindowCut::kParts; ++i) {
      const WindowPart& part = params.cut.part[shape][i];
      if (part.height == 0) continue;
      if (vorta_status status = encode(what, &maps->grid[shape][i], tensor.data,
                                       {{width, tensor.token_stride, part.box_width},
                                        {rows, tensor.token_stride * width, part.box_height},
                                        head,
                                        sample})) {
        return status;
      }
    }
  }
  if (compact == nullptr) return VORTA_OK;  // without routes
  const int64_t compact_tokens = int64_t{problem.kept_tokens} + problem.text_tokens, d = problem.head_dim;
  return encode(what, &maps->compact, compact,
                {{compact_tokens, d, keys},
                 {problem.heads, compact_tokens * d, 1},
                 {problem.batch, problem.heads * compact_tokens * d, 1}});
}

}  // namespace

vorta_status make_tensor_maps(AttentionParams& params, vorta_dtype dtype, int keys) {
  Encode function = nullptr;
  if (vorta_status status = find_encode(&function)) return status;
  const RoutedAttentionParams& problem = params.problem;
  const Encoder encode(function, dtype, problem.head_dim);
  if (vorta_status status = make_key_maps("key", encode, params, problem.key, problem.compact_key, keys, &params.key)) {
    return status;
  }
  return make_key_maps("value", encode, params, problem.value, problem.compact_value, keys, &params.value);
}

}  // namespace vorta::sm90
