/* SPDX-License-Identifier: Apache-2.0
 *
 * C API of libvorta_trt: routed attention on raw device pointers. It knows neither Torch nor TensorRT; both reach the
 * kernels through this header (Torch with ctypes, TensorRT through the plugin in ../tensorrt).
 *
 * Letters: B batch, S video tokens (= F*H*W of the grid), T text tokens (padded), N heads, D head dimension.
 */
#ifndef VORTA_TRT_ROUTED_ATTENTION_H_
#define VORTA_TRT_ROUTED_ATTENTION_H_

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define VORTA_API __declspec(dllexport)
#else
#define VORTA_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised on every change of a struct or of the meaning of an argument in this header. */
#define VORTA_API_VERSION 3

typedef enum vorta_status {
  VORTA_OK = 0,
  VORTA_INVALID_ARGUMENT = 1, /* the message of vorta_last_error() names argument, value, rule and remedy */
  VORTA_UNSUPPORTED = 2,      /* valid, but no kernel of this build or for this GPU */
  VORTA_CUDA_ERROR = 3        /* a CUDA runtime call or a launch failed */
} vorta_status;

typedef enum vorta_dtype { VORTA_FLOAT16 = 0, VORTA_BFLOAT16 = 1 } vorta_dtype;

/* Branch ids as they stand in `routes`. Any other value is treated as VORTA_FULL. */
typedef enum vorta_route { VORTA_FULL = 0, VORTA_CORESET = 1, VORTA_SLIDING = 2 } vorta_route;

/* Whose similarities choose the kept keys and values: the queries' or the keys' own. */
typedef enum vorta_coreset_keys { VORTA_KEYS_BY_QUERY = 0, VORTA_KEYS_BY_KEY = 1 } vorta_coreset_keys;

/* The types in which Q.K and P.V are multiplied; sums are float32 in the end. VORTA_PRECISION_FP8 permits 8 bits with
 * scales computed at run time: int8 for Q.K, e4m3 for P.V. It needs compute capability 8.9 or newer, and head_dim 64 or
 * 128. */
typedef enum vorta_attention_precision {
  VORTA_PRECISION_SAME = 0, /* the type of the inputs */
  VORTA_PRECISION_FP8 = 1
} vorta_attention_precision;

/* Everything about a problem but its pointers; enough to size the workspace.
 *
 * Tiles and buckets start at multiples of their size. Neither has to divide the grid: the last along an axis has what
 * is left, which is all of the axis where the size exceeds it. The window is counted in tiles, whatever their size. A
 * shorter bucket of t x h x w tokens has its centre at (t/2, h/2, w/2) and keeps max(1, t*h*w * keep / tokens of a
 * whole bucket) tokens, rounded down. */
typedef struct vorta_routed_attention_problem {
  size_t struct_size;          /* sizeof(vorta_routed_attention_problem), set by the caller */
  int32_t dtype;               /* vorta_dtype of query, key, value and output */
  int32_t batch;               /* B, may be 0 */
  int32_t heads;               /* N, may be 0 */
  int32_t head_dim;            /* D: a multiple of 8, at most 256 */
  int32_t grid[3];             /* frames, height, width of the token grid */
  int32_t tile[3];             /* in tokens */
  int32_t window[3];           /* odd, in tiles */
  int32_t bucket[3];           /* in tokens, at most 64 together */
  int32_t keep;                /* kept tokens of a whole bucket, its centre included */
  int32_t coreset_keys;        /* vorta_coreset_keys */
  int32_t text_tokens;         /* T, 0 if the family has no text in its self-attention */
  float scale;                 /* of the logits; 0 means 1/sqrt(D) */
  int32_t attention_precision; /* vorta_attention_precision */
  int32_t reserved;            /* 0; fills the struct up to its alignment, so that every byte has a name */
} vorta_routed_attention_problem;

/* Device pointers and strides. Strides are in elements, in the order batch, token, head; the head dimension is
 * contiguous. query, key, value and output are 16-byte aligned, and so is every stride in bytes. Strides may have any
 * order of size. Those of query, key and value may be 0 along an axis that repeats; apart from that no two rows of D
 * elements of a tensor share memory, nor do output, workspace and the inputs.
 *
 * For an empty problem (batch or heads 0) nothing is read, written or launched, and every pointer may be NULL. */
typedef struct vorta_routed_attention_tensors {
  size_t struct_size; /* sizeof(vorta_routed_attention_tensors), set by the caller */
  const void* query;  /* [B, S+T, N, D] */
  const void* key;
  const void* value;
  const int32_t* routes;      /* [B, N], read on the device only */
  const int32_t* text_length; /* [B], valid text tokens; NULL if and only if T == 0 */
  void* output;               /* [B, S+T, N, D], every element is written */
  int64_t query_stride[3];
  int64_t key_stride[3];
  int64_t value_stride[3];
  int64_t output_stride[3];
  void* workspace; /* 256-byte aligned, at least the bytes asked for; its contents need not survive the call */
  size_t workspace_bytes;
} vorta_routed_attention_tensors;

/* Validates `problem` without touching a GPU. */
VORTA_API vorta_status vorta_routed_attention_validate(const vorta_routed_attention_problem* problem);

/* Bytes of workspace, independent of the routes. */
VORTA_API vorta_status vorta_routed_attention_workspace_size(const vorta_routed_attention_problem* problem,
                                                             size_t* bytes);

/* Enqueues the whole operator on `stream` (a cudaStream_t). No host synchronisation, no allocation; may be captured
 * into a CUDA graph.
 *
 * `routes` and `text_length` must not change from the moment the work starts on the device until it ends: kernels read
 * them more than once. If they do change, the output is undefined, but the call ends, and nothing is written outside
 * output and workspace. The same holds for values that are out of range: any route but 1 and 2 is full attention, and
 * lengths are clamped to 0 and T.
 *
 * A CUDA error of this call is reported by this call and cleared; one that another call has left in this thread is
 * neither reported nor cleared. */
VORTA_API vorta_status vorta_routed_attention_enqueue(const vorta_routed_attention_problem* problem,
                                                      const vorta_routed_attention_tensors* tensors, void* stream);

/* Makes all later calls of the process take one family of kernels: "sm80" are those that run on every GPU, which have
 * no 8-bit products; "sm89_fp8" are the 8-bit ones of GPUs from SM89 on, together with those of sm80; NULL or "" lets
 * the GPU decide, which is the default. For tests and comparisons. The environment variable VORTA_TRT_KERNELS sets the
 * same; it is read once, when the library is loaded. */
VORTA_API vorta_status vorta_force_kernels(const char* family);

/* The family that calls are forced to take; "" if none. */
VORTA_API const char* vorta_forced_kernels(void);

/* Message of this thread's last failed call; "" if none failed. Valid until the thread's next call. */
VORTA_API const char* vorta_last_error(void);

/* Version of the project, e.g. "0.1.0". */
VORTA_API const char* vorta_version(void);

/* Hash of what a bundle relies on: the headers of the operators, and the fields of their plugins. */
VORTA_API const char* vorta_abi_hash(void);

/* The CUDA architectures compiled in, as CMake spells them, e.g. "80-real;90a-real". */
VORTA_API const char* vorta_cuda_architectures(void);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* VORTA_TRT_ROUTED_ATTENTION_H_ */
