// SPDX-License-Identifier: Apache-2.0
#include "coreset_selection.h"
#include "cuda_error.h"
#include "fp8/quantize.h"
#include "fp8_path.h"
#include "kernel_families.h"
#include "kernel_path.h"
#include "last_error.h"
#include "launch.h"
#include "sm80/attention_launch.h"
#include "sm89_fp8/attention_launch.h"
#include "sm90/attention_launch.h"
#include "sm90/block_shape.h"
#include "sm90_fp8/attention_launch.h"
#include "workspace.h"

namespace vorta {
namespace {

constexpr const char* kStep = "attention";

/// Turns the result of a launch into a status with its message.
vorta_status status_of(cudaError_t error) { return error == cudaSuccess ? VORTA_OK : report(kStep, error); }

template <vorta_dtype kDtype>
vorta_status launch_sm80(const RoutedAttentionParams& params, cudaStream_t stream) {
  return status_of(sm80::HeadDims::call(params.head_dim, cudaErrorInvalidValue, [&](auto head_dim) {
    return sm80::launch_attention<kDtype, decltype(head_dim)::value>(params, stream);
  }));
}

template <vorta_dtype kDtype>
vorta_status launch_sm90(const RoutedAttentionParams& params, cudaStream_t stream) {
#ifdef VORTA_WITHOUT_SM90  // in builds without 90a, where choose_kernel_path() does not lead here
  return report(kStep, cudaErrorNoKernelImageForDevice);
#else
  return sm90::HeadDims::call(params.head_dim, VORTA_UNSUPPORTED, [&](auto head_dim) {
    return sm90::launch_attention<kDtype, decltype(head_dim)::value>(params, stream);
  });
#endif
}

/// Attention to another sequence: with CrossBlockShape's blocks of keys if these are fuller, else as full heads.
template <vorta_dtype kDtype>
vorta_status launch_cross_sm90(const RoutedAttentionParams& params, cudaStream_t stream) {
#ifdef VORTA_WITHOUT_SM90
  return report(kStep, cudaErrorNoKernelImageForDevice);
#else
  bool prefers = false;
  const vorta_status status = sm90::CrossHeadDims::call(params.head_dim, VORTA_OK, [&](auto head_dim) {
    constexpr int kHeadDim = decltype(head_dim)::value;
    prefers = params.head_dim == kHeadDim && sm90::prefers_cross_shape<kHeadDim>(params.key_tokens);
    return prefers ? sm90::launch_cross_attention<kDtype, kHeadDim>(params, stream) : VORTA_OK;
  });
  return prefers ? status : launch_sm90<kDtype>(params, stream);
#endif
}

/// Comes after the quantisation.
template <vorta_dtype kDtype>
vorta_status launch_sm89_fp8(const RoutedAttentionParams& params, cudaStream_t stream) {
#ifdef VORTA_WITHOUT_SM89  // in builds for GPUs before 8.9 alone, where choose_fp8_path() does not lead here
  return report(kStep, cudaErrorNoKernelImageForDevice);
#else
  return status_of(sm89_fp8::HeadDims::call(params.head_dim, cudaErrorInvalidValue, [&](auto head_dim) {
    return sm89_fp8::launch_attention<kDtype, decltype(head_dim)::value>(params, stream);
  }));
#endif
}

/// Comes after the quantisation.
template <vorta_dtype kDtype>
vorta_status launch_sm90_fp8(const RoutedAttentionParams& params, cudaStream_t stream) {
#ifdef VORTA_WITHOUT_SM90
  return report(kStep, cudaErrorNoKernelImageForDevice);
#else
  return status_of(sm90_fp8::HeadDims::call(params.head_dim, cudaErrorInvalidValue, [&](auto head_dim) {
    return sm90_fp8::launch_attention<kDtype, decltype(head_dim)::value>(params, stream);
  }));
#endif
}

cudaError_t quantize(const RoutedAttentionParams& params, vorta_dtype dtype, cudaStream_t stream) {
#ifdef VORTA_WITHOUT_SM89
  return cudaErrorNoKernelImageForDevice;
#else
  return fp8::launch_quantization(params, dtype, stream);
#endif
}

template <vorta_dtype kDtype>
vorta_status launch_attention(KernelPath path, const RoutedAttentionParams& params, cudaStream_t stream) {
  switch (path) {
    case KernelPath::kSm90Fp8:
      return launch_sm90_fp8<kDtype>(params, stream);
    case KernelPath::kSm89Fp8:
      return launch_sm89_fp8<kDtype>(params, stream);
    case KernelPath::kSm90:
      return launch_sm90<kDtype>(params, stream);
    case KernelPath::kSm80:
      break;
  }
  return launch_sm80<kDtype>(params, stream);
}

vorta_status check_forced_kernels() {
  if (forced_kernels() != ForcedKernels::kUnknown) return VORTA_OK;
  return fail(VORTA_INVALID_ARGUMENT,
              "%s=%s in the environment when the library was loaded: must be sm80, the kernels that run on every "
              "GPU, or sm89_fp8, which also has 8-bit ones, or not be set; unset it",
              kKernelPathVariable, forced_kernels_name());
}

vorta_status launch_attention(KernelPath path, const RoutedAttentionParams& params, int32_t dtype,
                              cudaStream_t stream) {
  return dtype == VORTA_FLOAT16 ? launch_attention<VORTA_FLOAT16>(path, params, stream)
                                : launch_attention<VORTA_BFLOAT16>(path, params, stream);
}

}  // namespace

vorta_status launch(const vorta_routed_attention_problem& problem, const vorta_routed_attention_tensors& tensors,
                    void* stream) noexcept {
  const bool fp8 = problem.attention_precision == VORTA_PRECISION_FP8;
  if (vorta_status status = check_forced_kernels()) return status;
  KernelPath path{};
  if (fp8) {
    if (vorta_status status = choose_fp8_path(problem, &path)) return status;
  } else if (cudaError_t error = choose_kernel_path(problem, tensors, &path)) {
    return report("kernel choice", error);
  }
  const RoutedAttentionParams params = make_params(problem, tensors);
  const auto dtype = static_cast<vorta_dtype>(problem.dtype);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const bool compact = path == KernelPath::kSm90;
  if (cudaError_t error = launch_coreset_selection(params, dtype, compact, cuda_stream)) {
    return report("coreset selection", error);
  }
  if (fp8) {
    if (cudaError_t error = quantize(params, dtype, cuda_stream)) return report("quantisation", error);
  }
  return launch_attention(path, params, dtype, cuda_stream);
}

vorta_status launch(const vorta_cross_attention_params& call, void* stream) noexcept {
  if (vorta_status status = check_forced_kernels()) return status;
  KernelPath path{};
  if (cudaError_t error = choose_kernel_path(call, &path)) return report("kernel choice", error);
  const RoutedAttentionParams params = make_params(call);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (path != KernelPath::kSm90) return launch_attention(path, params, call.dtype, cuda_stream);
  return call.dtype == VORTA_FLOAT16 ? launch_cross_sm90<VORTA_FLOAT16>(params, cuda_stream)
                                     : launch_cross_sm90<VORTA_BFLOAT16>(params, cuda_stream);
}

}  // namespace vorta
