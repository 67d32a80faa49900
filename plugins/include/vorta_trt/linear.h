/* SPDX-License-Identifier: Apache-2.0
 *
 * C API of libvorta_trt: a linear layer, activation(input weight^T + bias), on raw device pointers, in 16 bits or with
 * fp8 products. Statuses, types and vorta_last_error() are those of routed_attention.h.
 *
 * Letters: R rows (= batch * tokens), K input features, O output features.
 */
#ifndef VORTA_TRT_LINEAR_H_
#define VORTA_TRT_LINEAR_H_

#include <stddef.h>
#include <stdint.h>

#include "routed_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum vorta_activation {
  VORTA_ACTIVATION_NONE = 0,
  VORTA_ACTIVATION_GELU_TANH = 1 /* x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) */
} vorta_activation;

/* The types that are multiplied. Products are exact and sums are float32 in both.
 *
 * VORTA_LINEAR_FP8: the input is e4m3 with a scale per row, as Quantize below and the norms that quantise
 * (block_operators.h) leave it, the weights are e4m3 with a scale per output feature, so
 * output = activation(input_scale[r] * weight_scale[o] * sum + bias). */
typedef enum vorta_linear_precision { VORTA_LINEAR_SAME = 0, VORTA_LINEAR_FP8 = 1 } vorta_linear_precision;

/* Everything about a call. The output is rounded once, at the end.
 *
 * The pointers are device pointers, aligned to 16 bytes; strides are in elements, from one row to the next, multiples
 * of 8 (of 16 for e4m3) and at least the row's length. Weights are dense, in the layout of torch. The output
 * shares no memory with any input or with the workspace.
 *
 * With second_input the layer is that of [input, second_input] side by side, without a copy of both: the sums of input
 * are rounded to dtype in the output, and then those of second_input are added.
 *
 * For an empty call (rows 0) nothing is read, written or launched, and every pointer may be NULL. */
typedef struct vorta_linear_params {
  size_t struct_size;        /* sizeof(vorta_linear_params), set by the caller */
  int32_t dtype;             /* vorta_dtype of input, bias, output, and of the weights unless they are e4m3 */
  int32_t precision;         /* vorta_linear_precision */
  int32_t activation;        /* vorta_activation */
  int32_t in_features;       /* K: a multiple of 8, with FP8 of 16 */
  int32_t out_features;      /* O: a multiple of 8, with FP8 of 16 */
  int32_t candidate;         /* 0: the library's choice; for comparisons n > 0: the n-th kernel that cuBLASLt lists, and
                                -1: the kernel for every GPU from 8.0 on */
  int64_t rows;              /* R, may be 0 */
  const void* input;         /* [R, K] of dtype, or e4m3 with FP8 */
  const float* input_scale;  /* [R] float32, with FP8; NULL without */
  const void* weight;        /* [O, K] of dtype, or e4m3 with FP8 */
  const float* weight_scale; /* [O] float32, with FP8; NULL without */
  const void* bias;          /* [O] of dtype, or NULL */
  void* output;              /* [R, O] of dtype, every element is written */
  int64_t input_stride;      /* at least K, or K - K2 */
  int64_t output_stride;     /* at least O */
  void* workspace;           /* 256-byte aligned; its contents need not survive the call */
  size_t workspace_bytes;    /* at least what vorta_linear_workspace_size says */
  const void* second_input;  /* SAME only: [R, K2] of dtype, whose features follow those of input; or NULL */
  int64_t second_stride;     /* of second_input, at least K2 */
  int32_t second_features;   /* K2, a multiple of 8 below K: input then has K - K2 features; 0 without second_input */
  int32_t reserved;          /* 0 */
} vorta_linear_params;

/* Validates everything but pointers and strides, without touching a GPU. */
VORTA_API vorta_status vorta_linear_validate(const vorta_linear_params* params);

/* Bytes of workspace: the same number for every call that has rows, on every GPU. */
VORTA_API vorta_status vorta_linear_workspace_size(const vorta_linear_params* params, size_t* bytes);

/* Enqueues the layer on `stream` (a cudaStream_t). No host synchronisation, no allocation of device memory; may be
 * captured into a CUDA graph. Calls with the same arguments on the same GPU and libraries give the same bits.
 *
 * On compute capability 9.0 fp8 products are kernels of this library (built for 90a). All others are those of cuBLASLt
 * (libcublasLt.so of CUDA 12 or 13): the file that VORTA_TRT_CUBLASLT names in the environment; else the one that the
 * process has loaded, as every process with torch's CUDA build has; else the one on the loader's path, the one given to
 * vorta_suggest_cublaslt, the one of NVIDIA's wheels in the site-packages that this library lies in, or the one in
 * /usr/local/cuda/lib64. Where cuBLASLt is not there or has no such product, a kernel of this library for every GPU
 * computes the same, more slowly. */
VORTA_API vorta_status vorta_linear_enqueue(const vorta_linear_params* params, void* stream);

/* Quantize: rows in e4m3, each divided by a scale of its own, its largest magnitude / 448; a row of zeros has scale 1.
 * Its outputs are input and input_scale of the layers that read the rows. Strides and pointers are as above;
 * the outputs are dense and share no memory with the input. One kernel, no workspace, and capturable as above.
 *
 * With second_input the rows are those of [input, second_input] side by side, with one scale for both. */
typedef struct vorta_quantize_params {
  size_t struct_size;       /* sizeof(vorta_quantize_params), set by the caller */
  int32_t dtype;            /* vorta_dtype of the input */
  int32_t features;         /* K: a multiple of 16 */
  int64_t rows;             /* R, may be 0 */
  const void* input;        /* [R, K] of dtype */
  void* quantized;          /* [R, K] e4m3, every element is written */
  float* quantized_scale;   /* [R] float32, every element is written */
  int64_t input_stride;     /* at least the features of input */
  const void* second_input; /* [R, K2] of dtype, whose features follow those of input; or NULL */
  int64_t second_stride;    /* at least K2 */
  int32_t second_features;  /* K2, a multiple of 8 below K: input then has K - K2 features; 0 without second_input */
  int32_t reserved;         /* 0 */
} vorta_quantize_params;

/* Validates everything but pointers and strides, without touching a GPU. */
VORTA_API vorta_status vorta_quantize_validate(const vorta_quantize_params* params);
VORTA_API vorta_status vorta_quantize_enqueue(const vorta_quantize_params* params, void* stream);

/* Names the kernels that calls on the current device take for their products: "sm90" (fp8 on Hopper), a cuBLASLt such
 * as "cublaslt 13.1.0", or "sm80", the slower kernel for every GPU. `reason` receives why it is "sm80", else ""; it may
 * be NULL. Both texts are valid until the thread's next call. */
VORTA_API const char* vorta_linear_backend(int32_t precision, const char** reason);

/* Names a libcublasLt.so to try where neither the process nor the loader has one; NULL takes the name back. A library
 * that was found stays. */
VORTA_API void vorta_suggest_cublaslt(const char* path);

/* Path of the libcublasLt that products take; "" if none was found. Valid until the process ends. Needs no GPU. */
VORTA_API const char* vorta_cublaslt_path(void);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* VORTA_TRT_LINEAR_H_ */
