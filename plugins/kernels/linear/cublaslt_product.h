// SPDX-License-Identifier: Apache-2.0
//
// A product through cuBLASLt.
#ifndef VORTA_TRT_KERNELS_LINEAR_CUBLASLT_PRODUCT_H_
#define VORTA_TRT_KERNELS_LINEAR_CUBLASLT_PRODUCT_H_

#include "linear/cublaslt_api.h"
#include "linear/product.h"

namespace vorta::linear {

enum class Outcome {
  kDone,
  kUnsupported,  // cuBLASLt has no kernel for it; nothing was enqueued
  kFailed,       // the error message is set
};

/// Enqueues the product. `candidate` 0 is the kernel that cuBLASLt lists first; larger ones wrap around its list.
Outcome enqueue_cublaslt(const cublaslt::Functions& functions, const Product& product, int candidate,
                         cudaStream_t stream) noexcept;

/// Whether cuBLASLt lists a kernel for the product on the current device; pointers are looked at for alignment alone.
Outcome ask_cublaslt(const cublaslt::Functions& functions, const Product& product) noexcept;

}  // namespace vorta::linear

#endif  // VORTA_TRT_KERNELS_LINEAR_CUBLASLT_PRODUCT_H_
