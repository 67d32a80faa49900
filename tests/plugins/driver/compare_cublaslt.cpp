// SPDX-License-Identifier: Apache-2.0
//
// Compiles if our declarations of cuBLASLt agree with its header.
#include <cublasLt.h>

#include <cstddef>

#include "agree.h"
#include "linear/cublaslt_api.h"

using namespace vorta::cublaslt;

static_assert(kSuccess == CUBLAS_STATUS_SUCCESS && kInvalidValue == CUBLAS_STATUS_INVALID_VALUE);
static_assert(kArchMismatch == CUBLAS_STATUS_ARCH_MISMATCH && kNotSupported == CUBLAS_STATUS_NOT_SUPPORTED);
static_assert(kComputeFloat32 == CUBLAS_COMPUTE_32F && kTransposed == CUBLAS_OP_T);
static_assert(int(kTransposeA) == CUBLASLT_MATMUL_DESC_TRANSA && int(kEpilogue) == CUBLASLT_MATMUL_DESC_EPILOGUE);
static_assert(int(kBiasPointer) == CUBLASLT_MATMUL_DESC_BIAS_POINTER);
static_assert(int(kScalePointerA) == CUBLASLT_MATMUL_DESC_A_SCALE_POINTER);
static_assert(int(kScalePointerB) == CUBLASLT_MATMUL_DESC_B_SCALE_POINTER);
static_assert(int(kScaleModeA) == CUBLASLT_MATMUL_DESC_A_SCALE_MODE);
static_assert(int(kScaleModeB) == CUBLASLT_MATMUL_DESC_B_SCALE_MODE);
static_assert(kScalePerVector == CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F);
static_assert(int(kEpilogueNone) == CUBLASLT_EPILOGUE_DEFAULT && int(kEpilogueBias) == CUBLASLT_EPILOGUE_BIAS);
static_assert(int(kEpilogueGelu) == CUBLASLT_EPILOGUE_GELU && int(kEpilogueGeluBias) == CUBLASLT_EPILOGUE_GELU_BIAS);
static_assert(int(kMaxWorkspaceBytes) == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES);
static_assert(int(kMinAlignmentA) == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES);
static_assert(int(kMinAlignmentB) == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES);
static_assert(int(kMinAlignmentC) == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES);
static_assert(int(kMinAlignmentD) == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES);
static_assert(sizeof(Algorithm) == sizeof(cublasLtMatmulAlgo_t));
static_assert(sizeof(HeuristicResult) == sizeof(cublasLtMatmulHeuristicResult_t));
static_assert(offsetof(HeuristicResult, state) == offsetof(cublasLtMatmulHeuristicResult_t, state));
static_assert(offsetof(HeuristicResult, workspace_bytes) == offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize));

#define COMPARE(result, name, arguments) \
  static_assert(Agree<decltype(Functions::name), decltype(&cublasLt##name)>::value, #name);
VORTA_CUBLASLT_FUNCTIONS(COMPARE)
