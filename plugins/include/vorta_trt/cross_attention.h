/* SPDX-License-Identifier: Apache-2.0
 *
 * C API of libvorta_trt: attention of one sequence to another, softmax(Q K^T scale) V, on raw device pointers.
 * Statuses, types and vorta_last_error() are those of routed_attention.h.
 *
 * Letters: B batch, X query tokens, Y key tokens, N heads, D head dimension.
 */
#ifndef VORTA_TRT_CROSS_ATTENTION_H_
#define VORTA_TRT_CROSS_ATTENTION_H_

#include <stddef.h>
#include <stdint.h>

#include "routed_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Everything about a call. Logits, softmax and both products are accumulated in float32; P is rounded to the input type
 * before P V, the output once at the end. No workspace is needed.
 *
 * The pointers are device pointers, aligned to 16 bytes. Strides are in elements, in the order batch, token, head, and
 * multiples of 8; the head dimension is contiguous. Strides may have any order of size. Those of query, key and value
 * may be 0 along an axis that repeats; apart from that no two rows of D elements of a tensor share memory. The output
 * shares no memory with an input. A stride of an axis with one entry is not looked at.
 *
 * For an empty call (batch, heads or query_tokens 0) nothing is read, written or launched, and every pointer may be
 * NULL. */
typedef struct vorta_cross_attention_params {
  size_t struct_size;   /* sizeof(vorta_cross_attention_params), set by the caller */
  int32_t dtype;        /* vorta_dtype of query, key, value and output */
  int32_t batch;        /* B, may be 0 */
  int32_t query_tokens; /* X, may be 0 */
  int32_t key_tokens;   /* Y, at least 1 */
  int32_t heads;        /* N, may be 0 */
  int32_t head_dim;     /* D: a multiple of 8, at most 256 */
  float scale;          /* of the logits; 0 means 1/sqrt(D) */
  int32_t reserved;     /* 0; fills the struct up to its alignment, so that every byte has a name */
  const void* query;    /* [B, X, N, D] */
  const void* key;      /* [B, Y, N, D] */
  const void* value;    /* [B, Y, N, D] */
  void* output;         /* [B, X, N, D], every element is written */
  int64_t query_stride[3];
  int64_t key_stride[3];
  int64_t value_stride[3];
  int64_t output_stride[3];
} vorta_cross_attention_params;

/* Validates everything but pointers and strides, without touching a GPU. */
VORTA_API vorta_status vorta_cross_attention_validate(const vorta_cross_attention_params* params);

/* Enqueues the operator on `stream` (a cudaStream_t): one kernel. No host synchronisation, no allocation; may be
 * captured into a CUDA graph. Two calls give the same bits. vorta_force_kernels() chooses the kernels of this operator,
 * too. */
VORTA_API vorta_status vorta_cross_attention_enqueue(const vorta_cross_attention_params* params, void* stream);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* VORTA_TRT_CROSS_ATTENTION_H_ */
