// SPDX-License-Identifier: Apache-2.0
#include "cuda_error.h"

#include <cstdio>

#include "last_error.h"

namespace vorta {

vorta_status report(const char* step, cudaError_t error) noexcept {
  cudaGetLastError();  // a call that failed has put its error there
  const char *name = cudaGetErrorName(error), *text = cudaGetErrorString(error);
  switch (error) {
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorUnsupportedPtxVersion:
      return fail(VORTA_UNSUPPORTED,
                  "%s: this GPU has no code in the library, which was built for %s (%s); rebuild it with this GPU's "
                  "compute capability in VORTA_CUDA_ARCHITECTURES",
                  step, vorta_cuda_architectures(), text);
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
    case cudaErrorStubLibrary: {
      int driver = 0;
      if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
      char found[64] = "";  // nothing where there is no driver
      if (driver != 0) {
        std::snprintf(found, sizeof(found), ", where this one's is of CUDA %d.%d", driver / 1000, driver % 1000 / 10);
      }
      return fail(VORTA_CUDA_ERROR,
                  "%s: %s: %s; run on a machine with an NVIDIA GPU and a driver of CUDA %d.%d or newer%s", step, name,
                  text, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10, found);
    }
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorHardwareStackError:
    case cudaErrorAssert:
    case cudaErrorECCUncorrectable:
      // Errors of work that has run: this call's work has not.
      return fail(VORTA_CUDA_ERROR,
                  "%s: %s: %s; work that was enqueued on this device before this call failed, and CUDA says so only "
                  "now; start the process anew with CUDA_LAUNCH_BLOCKING=1, or under compute-sanitizer, to find it",
                  step, name, text);
    case cudaErrorStreamCaptureImplicit:
    case cudaErrorStreamCaptureUnsupported:
    case cudaErrorStreamCaptureInvalidated:
      return fail(VORTA_CUDA_ERROR,
                  "%s: %s: %s; while a CUDA graph is captured, pass the stream that is captured, or one that belongs "
                  "to the capture",
                  step, name, text);
    default:
      return fail(VORTA_CUDA_ERROR,
                  "%s: %s: %s; check the pointers, and that they and the stream belong to the current device", step,
                  name, text);
  }
}

}  // namespace vorta
