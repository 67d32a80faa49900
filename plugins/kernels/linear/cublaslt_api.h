// SPDX-License-Identifier: Apache-2.0
//
// What we call of cuBLASLt, declared in our own words, so that the library builds without its headers and runs without
// linking to it. Values, sizes and signatures are those of CUDA 12 and 13; tests/plugins/test_cublaslt_abi.py compares
// them with a real header.
#ifndef VORTA_TRT_KERNELS_LINEAR_CUBLASLT_API_H_
#define VORTA_TRT_KERNELS_LINEAR_CUBLASLT_API_H_

#include <cuda_runtime_api.h>
#include <library_types.h>

#include <cstddef>
#include <cstdint>

namespace vorta::cublaslt {

using Handle = struct OpaqueHandle*;
using MatmulDesc = struct OpaqueMatmulDesc*;
using MatrixLayout = struct OpaqueMatrixLayout*;
using Preference = struct OpaquePreference*;

/// cublasStatus_t
using Status = int;
inline constexpr Status kSuccess = 0;
inline constexpr Status kInvalidValue = 7;
inline constexpr Status kArchMismatch = 8;
inline constexpr Status kNotSupported = 15;

inline constexpr int kComputeFloat32 = 68;  // cublasComputeType_t
inline constexpr int32_t kTransposed = 1;   // cublasOperation_t

/// cublasLtMatmulDescAttributes_t, with the type that each takes.
enum MatmulDescAttribute : int {
  kTransposeA = 3,         // int32
  kEpilogue = 7,           // uint32
  kBiasPointer = 8,        // const void*
  kScalePointerA = 17,     // const void*
  kScalePointerB = 18,     // const void*
  kFastAccumulation = 25,  // int8
  kScaleModeA = 31,        // int32, since CUDA 12.8
  kScaleModeB = 32,        // int32, since CUDA 12.8
};

/// cublasLtMatmulMatrixScale_t: a factor for each row of A, each column of B; since CUDA 12.9.
inline constexpr int32_t kScalePerVector = 3;

/// cublasLtEpilogue_t; the GELU is the one with tanh.
enum Epilogue : uint32_t { kEpilogueNone = 1, kEpilogueBias = 4, kEpilogueGelu = 32, kEpilogueGeluBias = 36 };

/// cublasLtMatmulPreferenceAttributes_t
enum PreferenceAttribute : int {
  kMaxWorkspaceBytes = 1,  // uint64
  kMinAlignmentA = 5,      // uint32, in bytes
  kMinAlignmentB = 6,
  kMinAlignmentC = 7,
  kMinAlignmentD = 8,
};

/// cublasLtMatmulAlgo_t: may be copied, holds no pointers.
struct Algorithm {
  uint64_t data[8];
};

/// cublasLtMatmulHeuristicResult_t
struct HeuristicResult {
  Algorithm algorithm;
  size_t workspace_bytes;
  Status state;
  float waves;
  int reserved[4];
};

/// Everything that we call: result, name and arguments of the functions, which begin with cublasLt.
#define VORTA_CUBLASLT_FUNCTIONS(X)                                                                                 \
  X(size_t, GetVersion, ())                                                                                         \
  X(Status, Create, (Handle*))                                                                                      \
  X(Status, MatmulDescCreate, (MatmulDesc*, int compute_type, cudaDataType_t scale_type))                           \
  X(Status, MatmulDescDestroy, (MatmulDesc))                                                                        \
  X(Status, MatmulDescSetAttribute, (MatmulDesc, int attribute, const void* value, size_t bytes))                   \
  X(Status, MatrixLayoutCreate, (MatrixLayout*, cudaDataType_t, uint64_t rows, uint64_t columns, int64_t stride))   \
  X(Status, MatrixLayoutDestroy, (MatrixLayout))                                                                    \
  X(Status, MatmulPreferenceCreate, (Preference*))                                                                  \
  X(Status, MatmulPreferenceDestroy, (Preference))                                                                  \
  X(Status, MatmulPreferenceSetAttribute, (Preference, int attribute, const void* value, size_t bytes))             \
  X(Status, MatmulAlgoGetHeuristic,                                                                                 \
    (Handle, MatmulDesc, MatrixLayout a, MatrixLayout b, MatrixLayout c, MatrixLayout d, Preference, int requested, \
     HeuristicResult* results, int* returned))                                                                      \
  X(Status, Matmul,                                                                                                 \
    (Handle, MatmulDesc, const void* alpha, const void* a, MatrixLayout a_layout, const void* b,                    \
     MatrixLayout b_layout, const void* beta, const void* c, MatrixLayout c_layout, void* d, MatrixLayout d_layout, \
     const Algorithm*, void* workspace, size_t workspace_bytes, cudaStream_t))

/// The functions of a loaded libcublasLt.
struct Functions {
#define VORTA_DECLARE(result, name, arguments) result(*name) arguments = nullptr;
  VORTA_CUBLASLT_FUNCTIONS(VORTA_DECLARE)
#undef VORTA_DECLARE
};

}  // namespace vorta::cublaslt

#endif  // VORTA_TRT_KERNELS_LINEAR_CUBLASLT_API_H_
