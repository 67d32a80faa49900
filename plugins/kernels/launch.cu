// SPDX-License-Identifier: Apache-2.0
#include "attention_launch.h"
#include "block_shape.h"
#include "coreset_selection.h"
#include "last_error.h"
#include "launch.h"

namespace vorta {
namespace {

template <vorta_dtype kDtype>
cudaError_t launch_attention_for(const RoutedAttentionParams& params, cudaStream_t stream) {
  switch (instance_head_dim(params.head_dim)) {
    case 64:
      return launch_attention<kDtype, 64>(params, stream);
    case 96:
      return launch_attention<kDtype, 96>(params, stream);
    case 128:
      return launch_attention<kDtype, 128>(params, stream);
    case 192:
      return launch_attention<kDtype, 192>(params, stream);
    default:
      return launch_attention<kDtype, 256>(params, stream);
  }
}

/// Turns a failed step into a status and a message with what to do next.
vorta_status report(const char* step, cudaError_t error) {
  switch (error) {
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorUnsupportedPtxVersion:
      return fail(VORTA_UNSUPPORTED,
                  "%s: this GPU has no code in the library, which was built for %s (%s); rebuild it with this GPU's "
                  "compute capability in VORTA_CUDA_ARCHITECTURES",
                  step, vorta_cuda_architectures(), cudaGetErrorString(error));
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorSystemDriverMismatch:
      return fail(
          VORTA_CUDA_ERROR, "%s: %s: %s; run on a machine with an NVIDIA GPU and a driver of CUDA %d.%d or newer", step,
          cudaGetErrorName(error), cudaGetErrorString(error), CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    default:
      return fail(VORTA_CUDA_ERROR,
                  "%s: %s: %s; check the pointers, and that they and the stream belong to the current device", step,
                  cudaGetErrorName(error), cudaGetErrorString(error));
  }
}

}  // namespace

vorta_status launch(const vorta_routed_attention_problem& problem, const vorta_routed_attention_tensors& tensors,
                    void* stream) noexcept {
  const RoutedAttentionParams params = make_params(problem, tensors);
  const auto dtype = static_cast<vorta_dtype>(problem.dtype);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);

  if (cudaError_t error = launch_coreset_selection(params, dtype, cuda_stream)) {
    return report("coreset selection", error);
  }
  const cudaError_t error = dtype == VORTA_FLOAT16 ? launch_attention_for<VORTA_FLOAT16>(params, cuda_stream)
                                                   : launch_attention_for<VORTA_BFLOAT16>(params, cuda_stream);
  return error == cudaSuccess ? VORTA_OK : report("attention", error);
}

}  // namespace vorta
