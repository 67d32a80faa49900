// SPDX-License-Identifier: Apache-2.0
//
// The C API of the linear layers: validate, size the workspace, quantise, multiply. Nothing here or below throws.
#include "vorta_trt/linear.h"

#include <algorithm>
#include <cstdio>

#include "cuda_error.h"
#include "kernel_path.h"
#include "last_error.h"
#include "linear/cublaslt_library.h"
#include "linear/cublaslt_product.h"
#include "linear/product.h"
#include "linear/validate_linear.h"
#include "sm90_linear/fp8_product.h"

namespace vorta::linear {
namespace {

/// cuBLASLt's kernels count in 32 bits somewhere; a call of more elements is cut into parts of whole rows.
constexpr int64_t kMaxElements = (int64_t{1} << 31) - 1;
constexpr int64_t kRowsOfPart = 256;  // parts are multiples of it, the last one aside

/// Whether the kernels of sm90_linear/ serve the current device.
cudaError_t is_hopper(bool* result) {
  int gpu = 0;
  const cudaError_t error = compute_capability(&gpu);
  *result = error == cudaSuccess && gpu == 90 && forced_kernels() == ForcedKernels::kNone;
  return error;
}

Product product_of(const vorta_linear_params& p) {
  Product product{};
  product.dtype = static_cast<vorta_dtype>(p.dtype);
  product.fp8 = p.precision == VORTA_LINEAR_FP8;
  product.gelu = p.activation == VORTA_ACTIVATION_GELU_TANH;
  product.rows = p.rows;
  product.in_features = p.in_features;
  product.out_features = p.out_features;
  product.input = p.input;
  product.weight = p.weight;
  product.input_scale = p.input_scale;
  product.weight_scale = p.weight_scale;
  product.bias = p.bias;
  product.output = p.output;
  product.input_stride = p.input_stride;
  product.weight_stride = p.in_features;
  product.output_stride = p.output_stride;
  product.workspace = p.workspace;
  return product;
}

/// The fp8 kernels of sm90_linear/, which are faster than cuBLASLt's: *done says whether they took the product.
vorta_status multiply_on_hopper([[maybe_unused]] const Product& product, [[maybe_unused]] cudaStream_t stream,
                                bool* done) {
  *done = false;
#ifndef VORTA_WITHOUT_SM90
  bool hopper = false;
  if (cudaError_t error = is_hopper(&hopper)) return report("linear layer", error);
  if (!hopper) return VORTA_OK;
  *done = true;
  const auto launch = [&] {
    using namespace sm90_linear;
    if (product.dtype == VORTA_FLOAT16) {
      return product.gelu ? launch_fp8_product<VORTA_FLOAT16, true>(product, stream)
                          : launch_fp8_product<VORTA_FLOAT16, false>(product, stream);
    }
    return product.gelu ? launch_fp8_product<VORTA_BFLOAT16, true>(product, stream)
                        : launch_fp8_product<VORTA_BFLOAT16, false>(product, stream);
  };
  const cudaError_t error = launch();
  return error == cudaSuccess ? VORTA_OK : report("linear layer", error);
#else
  return VORTA_OK;
#endif
}

/// Multiplies through cuBLASLt; *done says whether it has a kernel. `place`: place of the kernel in cuBLASLt's list.
vorta_status multiply_by_cublaslt(const Product& product, int place, cudaStream_t stream, bool* done) {
  *done = false;
  const cublaslt::Functions* functions = nullptr;
  if (vorta_status status = cublaslt::find_library(&functions)) return status;
  if (functions == nullptr) return VORTA_OK;
  Outcome outcome = enqueue_cublaslt(*functions, product, place, stream);
  if (outcome == Outcome::kUnsupported && product.gelu) {  // perhaps only the epilogue is missing
    Product plain = product;
    plain.gelu = false;
    outcome = enqueue_cublaslt(*functions, plain, place, stream);
    if (outcome == Outcome::kDone) {
      if (cudaError_t error = launch_gelu(product, stream)) return report("GELU", error);
    }
  }
  if (outcome == Outcome::kFailed) return VORTA_CUDA_ERROR;
  *done = outcome == Outcome::kDone;
  return VORTA_OK;
}

vorta_status multiply(const Product& product, int candidate, cudaStream_t stream) {
  bool done = false;
  if (candidate == 0 && product.fp8) {
    if (vorta_status status = multiply_on_hopper(product, stream, &done)) return status;
  }
  if (!done && candidate >= 0) {
    const int place = std::max(candidate - 1, 0);
    if (vorta_status status = multiply_by_cublaslt(product, place, stream, &done)) return status;
  }
  if (done) return VORTA_OK;
  const cudaError_t error = launch_own_product(product, stream);
  return error == cudaSuccess ? VORTA_OK : report("linear layer", error);
}

vorta_status multiply_in_parts(const Product& whole, int candidate, cudaStream_t stream) {
  const int64_t fitting = kMaxElements / std::max(whole.input_stride, whole.output_stride);
  const int64_t part_rows = std::max(fitting / kRowsOfPart * kRowsOfPart, kRowsOfPart);
  const int64_t input_bytes = whole.fp8 ? 1 : 2;
  for (int64_t row = 0; row < whole.rows; row += part_rows) {
    Product part = whole;
    part.rows = std::min(part_rows, whole.rows - row);
    part.input = static_cast<const char*>(whole.input) + row * whole.input_stride * input_bytes;
    part.output = static_cast<char*>(whole.output) + row * whole.output_stride * 2;
    if (whole.fp8) part.input_scale = whole.input_scale + row;
    if (vorta_status status = multiply(part, candidate, stream)) return status;
  }
  return VORTA_OK;
}

/// The product of two inputs: the first one's sums, then those of the second on top, with bias and activation.
vorta_status multiply_both(const vorta_linear_params& p, cudaStream_t stream) {
  Product first = product_of(p), second = first;
  first.in_features = p.in_features - p.second_features;
  first.bias = nullptr;
  first.gelu = false;
  second.in_features = p.second_features;
  second.input = p.second_input;
  second.input_stride = p.second_stride;
  second.weight = static_cast<const char*>(p.weight) + int64_t{first.in_features} * 2;
  second.adds = true;
  if (vorta_status status = multiply_in_parts(first, p.candidate, stream)) return status;
  return multiply_in_parts(second, p.candidate, stream);
}

vorta_status enqueue(const vorta_linear_params& p, cudaStream_t stream) {
  if (p.second_input != nullptr) return multiply_both(p, stream);
  return multiply_in_parts(product_of(p), p.candidate, stream);
}

/// A small product like those of the models, to ask cuBLASLt whether it has a kernel for such products.
Product example(bool fp8) {
  const auto* somewhere = reinterpret_cast<const void*>(uintptr_t{1} << 20);  // aligned; nothing reads it
  Product product{};
  product.dtype = VORTA_BFLOAT16;
  product.fp8 = fp8;
  product.rows = product.in_features = product.out_features = 1024;
  product.input_stride = product.weight_stride = product.output_stride = 1024;
  product.input = product.weight = product.bias = somewhere;
  product.output = const_cast<void*>(somewhere);
  product.input_scale = product.weight_scale = static_cast<const float*>(somewhere);
  return product;
}

}  // namespace
}  // namespace vorta::linear

vorta_status vorta_linear_validate(const vorta_linear_params* params) { return vorta::linear::validate(params); }

vorta_status vorta_linear_workspace_size(const vorta_linear_params* params, size_t* bytes) {
  if (vorta_status status = vorta::linear::validate(params)) return status;
  if (bytes == nullptr) {
    return vorta::fail(VORTA_INVALID_ARGUMENT, "bytes NULL: must point to a size_t that takes the answer; pass one");
  }
  *bytes = params->rows == 0 ? 0 : vorta::linear::kProductWorkspace;
  return VORTA_OK;
}

vorta_status vorta_linear_enqueue(const vorta_linear_params* params, void* stream) {
  size_t workspace_bytes = 0;
  if (vorta_status status = vorta_linear_workspace_size(params, &workspace_bytes)) return status;
  if (params->rows == 0) return VORTA_OK;
  if (vorta_status status = vorta::linear::validate_tensors(*params, workspace_bytes)) return status;
  return vorta::linear::enqueue(*params, static_cast<cudaStream_t>(stream));
}

vorta_status vorta_quantize_validate(const vorta_quantize_params* params) { return vorta::linear::validate(params); }

vorta_status vorta_quantize_enqueue(const vorta_quantize_params* params, void* stream) {
  using namespace vorta;
  if (vorta_status status = linear::validate(params)) return status;
  const vorta_quantize_params& p = *params;
  if (p.rows == 0) return VORTA_OK;
  if (vorta_status status = linear::validate_tensors(p)) return status;
  const cudaError_t error =
      linear::launch_quantize_rows(static_cast<vorta_dtype>(p.dtype), p.rows, p.features,
                                   {p.input, p.input_stride, p.second_input, p.second_stride, p.second_features},
                                   p.quantized, p.quantized_scale, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? VORTA_OK : report("quantisation", error);
}

const char* vorta_linear_backend(int32_t precision, const char** reason) {
  using namespace vorta;
  thread_local char name[32], why[512];
  std::snprintf(name, sizeof(name), "sm80");
  why[0] = '\0';
  if (reason != nullptr) *reason = why;
#ifndef VORTA_WITHOUT_SM90
  bool hopper = false;
  if (precision == VORTA_LINEAR_FP8 && linear::is_hopper(&hopper) == cudaSuccess && hopper) {
    std::snprintf(name, sizeof(name), "sm90");
    return name;
  }
#endif
  const cublaslt::Functions* functions = nullptr;
  if (cublaslt::find_library(&functions)) {
    std::snprintf(why, sizeof(why), "%s", last_error());
    return name;
  }
  if (functions == nullptr) {
    std::snprintf(why, sizeof(why),
                  "no libcublasLt.so of CUDA 12 or 13 is loaded, on the loader's path, in NVIDIA's wheels or in "
                  "/usr/local/cuda; pip install nvidia-cublas, or name the file in %s",
                  cublaslt::kLibraryVariable);
    return name;
  }
  const size_t v = functions->GetVersion();  // 120804 is 12.8.4
  const auto major = static_cast<int>(v / 10000), minor = static_cast<int>(v % 10000 / 100);
  const auto patch = static_cast<int>(v % 100);
  switch (linear::ask_cublaslt(*functions, linear::example(precision == VORTA_LINEAR_FP8))) {
    case linear::Outcome::kDone:
      std::snprintf(name, sizeof(name), "cublaslt %d.%d.%d", major, minor, patch);
      break;
    case linear::Outcome::kUnsupported:
      std::snprintf(why, sizeof(why),
                    "cuBLASLt %d.%d.%d lists no kernel for such products on this GPU; fp8 with scales per row and "
                    "column needs CUDA 12.9 and compute capability 9.0",
                    major, minor, patch);
      break;
    case linear::Outcome::kFailed:
      std::snprintf(why, sizeof(why), "%s", last_error());
  }
  return name;
}

void vorta_suggest_cublaslt(const char* path) { vorta::cublaslt::suggest_library(path); }

const char* vorta_cublaslt_path() { return vorta::cublaslt::library_path(); }
