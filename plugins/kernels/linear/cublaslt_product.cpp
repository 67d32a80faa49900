// SPDX-License-Identifier: Apache-2.0
//
// cuBLASLt counts in columns: its D [O, R] = A^T B with A = weight [K, O] and B = input [K, R], all by columns, is our
// output [R, O] by rows.
#include "linear/cublaslt_product.h"

#include <algorithm>
#include <initializer_list>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "cuda_error.h"
#include "last_error.h"

namespace vorta::linear {
namespace {

using namespace cublaslt;

constexpr int kMaxDevices = 64;
constexpr int kMaxCandidates = 16;

/// Lets calls that a stream capture forbids, such as loading a kernel, pass outside of the capture.
class RelaxedCapture {
 public:
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

/// Descriptors of one call; they are made anew each time, which takes microseconds, since they hold the pointers.
struct Descriptors {
  explicit Descriptors(const Functions& functions) : functions(functions) {}
  Descriptors(const Descriptors&) = delete;
  Descriptors& operator=(const Descriptors&) = delete;
  ~Descriptors() {
    if (preference) functions.MatmulPreferenceDestroy(preference);
    for (MatrixLayout layout : {a, b, d}) {
      if (layout) functions.MatrixLayoutDestroy(layout);
    }
    if (matmul) functions.MatmulDescDestroy(matmul);
  }

  const Functions& functions;
  MatmulDesc matmul = nullptr;
  MatrixLayout a = nullptr, b = nullptr, d = nullptr;
  Preference preference = nullptr;
};

template <class Value>
Status set(const Descriptors& of, MatmulDescAttribute attribute, const Value& value) {
  return of.functions.MatmulDescSetAttribute(of.matmul, attribute, &value, sizeof(value));
}

Epilogue epilogue_of(const Product& product) {
  if (product.bias == nullptr) return product.gelu ? kEpilogueGelu : kEpilogueNone;
  return product.gelu ? kEpilogueGeluBias : kEpilogueBias;
}

Status describe(const Product& p, Descriptors* result) {
  const Functions& functions = result->functions;
  const cudaDataType_t output_type = p.dtype == VORTA_FLOAT16 ? CUDA_R_16F : CUDA_R_16BF;
  const cudaDataType_t input_type = p.fp8 ? CUDA_R_8F_E4M3 : output_type;
  const auto k = static_cast<uint64_t>(p.in_features), o = static_cast<uint64_t>(p.out_features);
  const auto r = static_cast<uint64_t>(p.rows);
  if (Status s = functions.MatmulDescCreate(&result->matmul, kComputeFloat32, CUDA_R_32F)) return s;
  if (Status s = functions.MatrixLayoutCreate(&result->a, input_type, k, o, p.weight_stride)) return s;
  if (Status s = functions.MatrixLayoutCreate(&result->b, input_type, k, r, p.input_stride)) return s;
  if (Status s = functions.MatrixLayoutCreate(&result->d, output_type, o, r, p.output_stride)) return s;
  if (Status s = set(*result, kTransposeA, kTransposed)) return s;
  if (Status s = set(*result, kEpilogue, static_cast<uint32_t>(epilogue_of(p)))) return s;
  if (p.bias != nullptr) {
    if (Status s = set(*result, kBiasPointer, p.bias)) return s;
  }
  if (p.fp8) {
    if (Status s = set(*result, kScaleModeA, kScalePerVector)) return s;
    if (Status s = set(*result, kScaleModeB, kScalePerVector)) return s;
    if (Status s = set(*result, kScalePointerA, p.weight_scale)) return s;
    if (Status s = set(*result, kScalePointerB, p.input_scale)) return s;
  }
  return kSuccess;
}

/// The largest power of two that divides an address, at most 256.
uint32_t alignment_of(const void* pointer) {
  const uintptr_t bits = reinterpret_cast<uintptr_t>(pointer) | 256;
  return static_cast<uint32_t>(bits & (~bits + 1));
}

/// All that cuBLASLt's choice depends on.
using Key =
    std::tuple<int, int, bool, uint32_t, int64_t, int, int, int64_t, int64_t, int64_t, uint32_t, uint32_t, uint32_t>;

Key key_of(const Product& p, int device) {
  const uint32_t of_output = std::min(alignment_of(p.output), alignment_of(p.bias));
  return {device,
          p.dtype,
          p.fp8,
          epilogue_of(p),
          p.rows,
          p.in_features,
          p.out_features,
          p.input_stride,
          p.weight_stride,
          p.output_stride,
          alignment_of(p.weight),
          alignment_of(p.input),
          of_output};
}

using Candidates = std::vector<Algorithm>;

Status list_candidates(Handle handle, const Key& key, Descriptors* descriptors, Candidates* candidates) {
  const Functions& functions = descriptors->functions;
  if (Status s = functions.MatmulPreferenceCreate(&descriptors->preference)) return s;
  const auto prefer = [&](PreferenceAttribute attribute, auto value) {
    return functions.MatmulPreferenceSetAttribute(descriptors->preference, attribute, &value, sizeof(value));
  };
  if (Status s = prefer(kMaxWorkspaceBytes, uint64_t{kProductWorkspace})) return s;
  if (Status s = prefer(kMinAlignmentA, std::get<10>(key))) return s;
  if (Status s = prefer(kMinAlignmentB, std::get<11>(key))) return s;
  if (Status s = prefer(kMinAlignmentC, std::get<12>(key))) return s;
  if (Status s = prefer(kMinAlignmentD, std::get<12>(key))) return s;
  HeuristicResult results[kMaxCandidates];
  int returned = 0;
  const Status status =
      functions.MatmulAlgoGetHeuristic(handle, descriptors->matmul, descriptors->a, descriptors->b, descriptors->d,
                                       descriptors->d, descriptors->preference, kMaxCandidates, results, &returned);
  if (status != kSuccess) return status;
  for (int i = 0; i < returned; ++i) {
    if (results[i].state == kSuccess) candidates->push_back(results[i].algorithm);
  }
  return candidates->empty() ? kNotSupported : kSuccess;
}

bool is_unsupported(Status status) {
  return status == kNotSupported || status == kInvalidValue || status == kArchMismatch;
}

Outcome outcome_of(const char* step, Status status) {
  if (status == kSuccess) return Outcome::kDone;
  if (is_unsupported(status)) return Outcome::kUnsupported;
  fail(VORTA_CUDA_ERROR,
       "%s: cuBLASLt gives status %d (cublasStatus_t); look at the errors of the work that was enqueued before, and at "
       "whether driver and libcublasLt belong together",
       step, status);
  return Outcome::kFailed;
}

/// Handles and choices of all devices. They live until the process ends: cuBLASLt may be gone before static objects.
class Choices {
 public:
  Outcome candidates(const Product& product, Descriptors* descriptors, Handle* handle, const Candidates** result) {
    int device = 0;
    if (cudaError_t error = cudaGetDevice(&device)) return report("product", error), Outcome::kFailed;
    if (device >= kMaxDevices) return Outcome::kUnsupported;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (handles_[device] == nullptr) {
      if (Status s = descriptors->functions.Create(&handles_[device])) return outcome_of("cublasLtCreate", s);
    }
    *handle = handles_[device];
    const Key key = key_of(product, device);
    auto found = known_.find(key);
    if (found == known_.end()) {
      Candidates candidates;
      const Status status = list_candidates(*handle, key, descriptors, &candidates);
      if (status != kSuccess && !is_unsupported(status)) return outcome_of("cublasLtMatmulAlgoGetHeuristic", status);
      found = known_.emplace(key, std::move(candidates)).first;  // an empty list: unsupported
    }
    *result = &found->second;
    return found->second.empty() ? Outcome::kUnsupported : Outcome::kDone;
  }

  static Choices& instance() {
    static auto* choices = new Choices;
    return *choices;
  }

 private:
  std::mutex mutex_;
  Handle handles_[kMaxDevices] = {};
  std::map<Key, Candidates> known_;  // entries never move nor change
};

Outcome run(const Functions& functions, const Product& product, const int* candidate, cudaStream_t stream) {
  const RelaxedCapture relaxed;
  Descriptors descriptors(functions);
  const Status described = describe(product, &descriptors);
  if (described != kSuccess) return outcome_of("description of a product", described);
  Handle handle = nullptr;
  const Candidates* candidates = nullptr;
  const Outcome listed = Choices::instance().candidates(product, &descriptors, &handle, &candidates);
  if (listed != Outcome::kDone || candidate == nullptr) return listed;
  const float alpha = 1.0f, beta = product.adds ? 1.0f : 0.0f;
  const Algorithm& algorithm = (*candidates)[*candidate % candidates->size()];
  return outcome_of("cublasLtMatmul",
                    functions.Matmul(handle, descriptors.matmul, &alpha, product.weight, descriptors.a, product.input,
                                     descriptors.b, &beta, product.output, descriptors.d, product.output, descriptors.d,
                                     &algorithm, product.workspace, kProductWorkspace, stream));
}

Outcome run_without_throwing(const Functions& functions, const Product& product, const int* candidate,
                             cudaStream_t stream) noexcept {
  try {
    return run(functions, product, candidate, stream);
  } catch (...) {  // no memory for an entry
    fail(VORTA_CUDA_ERROR, "product: the host has no memory left; free some");
    return Outcome::kFailed;
  }
}

}  // namespace

Outcome enqueue_cublaslt(const Functions& functions, const Product& product, int candidate,
                         cudaStream_t stream) noexcept {
  return run_without_throwing(functions, product, &candidate, stream);
}

Outcome ask_cublaslt(const Functions& functions, const Product& product) noexcept {
  return run_without_throwing(functions, product, nullptr, nullptr);
}

}  // namespace vorta::linear
