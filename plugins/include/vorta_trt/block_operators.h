/* SPDX-License-Identifier: Apache-2.0
 *
 * C API of libvorta_trt: the norms of a transformer block, each fused with what surrounds it, on raw device pointers.
 * Statuses, types and vorta_last_error() are those of routed_attention.h.
 *
 * All arithmetic is float32, and each output is rounded once. Every operator reads its inputs once from global memory,
 * needs no workspace and is one kernel. Two calls give the same bits.
 *
 * Letters: B batch, X tokens, N heads, D head dimension, E features of a token (= N D), M rows of a modulation.
 *
 * Rules for all of them. Pointers are device pointers, aligned to 16 bytes. Strides are in elements, in the order
 * batch, token; the E features (or N heads of D) of a token are contiguous. Strides of tokens are multiples of 8; those
 * of inputs may be 0 along an axis that repeats; apart from that no two rows of a tensor share memory. An output shares
 * no memory with another output or an input, except that an output may be an input of the same call in place: the same
 * pointer and strides. For an empty call (batch, tokens or features 0) nothing is read, written or launched, and every
 * pointer may be NULL.
 *
 * Each `_validate` looks at everything but pointers and strides and touches no GPU. Each `_enqueue` neither
 * synchronises with the host nor allocates, and may be captured into a CUDA graph; `stream` is a cudaStream_t.
 */
#ifndef VORTA_TRT_BLOCK_OPERATORS_H_
#define VORTA_TRT_BLOCK_OPERATORS_H_

#include <stddef.h>
#include <stdint.h>

#include "routed_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A float32 tensor [B or 1, M, E] with M 1 or 2. Tokens before first_tokens take row 0, all others row 1; with M = 1
 * row_stride is 0, so both are one row. A stride is 0 along an axis that repeats, else a multiple of 4. */
typedef struct vorta_modulation {
  const float* data;
  int64_t batch_stride;
  int64_t row_stride;
} vorta_modulation;

/* HeadNorm: an RMS norm over all features or over each head,
 *   output = tokens * weight / sqrt(mean(tokens^2) + epsilon),
 * with the mean over E (weight_length E) or over the D of a head (weight_length D). */
typedef struct vorta_head_norm_params {
  size_t struct_size;     /* sizeof(vorta_head_norm_params), set by the caller */
  int32_t dtype;          /* vorta_dtype of tokens and output */
  int32_t weight_float32; /* 1: the weight is float32; 0: it is of dtype */
  int32_t batch;          /* B, may be 0 */
  int32_t token_count;    /* X, may be 0 */
  int32_t heads;          /* N, may be 0 */
  int32_t head_dim;       /* D: a multiple of 8, at most 256; E = N D is at most 8192 */
  int32_t weight_length;  /* E or D */
  float epsilon;          /* at least 0 */
  const void* tokens;     /* [B, X, E] */
  const void* weight;     /* [weight_length] */
  void* output;           /* [B, X, N, D], every element is written */
  int64_t tokens_stride[2];
  int64_t output_stride[2];
} vorta_head_norm_params;

VORTA_API vorta_status vorta_head_norm_validate(const vorta_head_norm_params* params);
VORTA_API vorta_status vorta_head_norm_enqueue(const vorta_head_norm_params* params, void* stream);

/* QKNormRotary: HeadNorm of queries and of keys, then rotation of neighbouring pairs of a head,
 *   (even, odd) -> (even * cos - odd * sin, even * sin + odd * cos). */
typedef struct vorta_qk_norm_rotary_params {
  size_t struct_size;       /* sizeof(vorta_qk_norm_rotary_params), set by the caller */
  int32_t dtype;            /* vorta_dtype of queries, keys and outputs */
  int32_t weight_float32;   /* 1: both weights are float32; 0: they are of dtype */
  int32_t batch;            /* B, may be 0 */
  int32_t token_count;      /* X, may be 0 */
  int32_t heads;            /* N, may be 0 */
  int32_t head_dim;         /* D: a multiple of 8, at most 256; E = N D is at most 8192 */
  int32_t weight_length;    /* E or D */
  float epsilon;            /* at least 0 */
  const void* query;        /* [B, X, E] */
  const void* key;          /* [B, X, E] */
  const void* query_weight; /* [weight_length] */
  const void* key_weight;   /* [weight_length] */
  const float* cos;         /* [X, D/2], contiguous; the same for every sample and head */
  const float* sin;         /* [X, D/2], contiguous */
  void* query_output;       /* [B, X, N, D], every element is written */
  void* key_output;         /* [B, X, N, D], every element is written */
  int64_t query_stride[2];
  int64_t key_stride[2];
  int64_t query_output_stride[2];
  int64_t key_output_stride[2];
} vorta_qk_norm_rotary_params;

VORTA_API vorta_status vorta_qk_norm_rotary_validate(const vorta_qk_norm_rotary_params* params);
VORTA_API vorta_status vorta_qk_norm_rotary_enqueue(const vorta_qk_norm_rotary_params* params, void* stream);

/* NormModulate: a layer norm without weights, then a modulation,
 *   output = (tokens - mean) / sqrt(variance + epsilon) * scale + shift.
 * The 1 that models add to the scale is in `scale` already.
 *
 * `quantized` is the input that an fp8 linear layer reads (linear.h): the output is rounded to dtype, then each row is
 * divided by its scale and rounded to e4m3. The scale is the row's largest magnitude / 448, or 1 for a row of zeros. */
typedef struct vorta_norm_modulate_params {
  size_t struct_size;     /* sizeof(vorta_norm_modulate_params), set by the caller */
  int32_t dtype;          /* vorta_dtype of tokens and output */
  int32_t batch;          /* B, may be 0 */
  int32_t token_count;    /* X, may be 0 */
  int32_t features;       /* E: a multiple of 8, of 16 where quantized is given; at most 8192; may be 0 */
  int32_t first_tokens;   /* tokens of each sample that take row 0 of the modulations; at least 0 */
  float epsilon;          /* at least 0 */
  const void* tokens;     /* [B, X, E] */
  vorta_modulation scale; /* [B or 1, M, E] */
  vorta_modulation shift; /* [B or 1, M, E] */
  void* output;           /* [B, X, E], every element is written; NULL if only `quantized` is wanted */
  void* quantized;        /* [B, X, E] e4m3, contiguous; or NULL */
  float* quantized_scale; /* [B, X] float32, contiguous; NULL if and only if `quantized` is */
  int64_t tokens_stride[2];
  int64_t output_stride[2];
} vorta_norm_modulate_params;

VORTA_API vorta_status vorta_norm_modulate_validate(const vorta_norm_modulate_params* params);
VORTA_API vorta_status vorta_norm_modulate_enqueue(const vorta_norm_modulate_params* params, void* stream);

/* ResidualNormModulate: a gated residual, then NormModulate of it,
 *   residual_output = residual + update * gate
 *   output = NormModulate(residual_output), whose statistics are those of residual_output as it was rounded. */
typedef struct vorta_residual_norm_modulate_params {
  size_t struct_size;     /* sizeof(vorta_residual_norm_modulate_params), set by the caller */
  int32_t dtype;          /* vorta_dtype of residual, update and outputs */
  int32_t batch;          /* B, may be 0 */
  int32_t token_count;    /* X, may be 0 */
  int32_t features;       /* E: as in NormModulate */
  int32_t first_tokens;   /* as in NormModulate; for gate, scale and shift */
  float epsilon;          /* at least 0 */
  const void* residual;   /* [B, X, E] */
  const void* update;     /* [B, X, E] */
  vorta_modulation gate;  /* [B or 1, M, E] */
  vorta_modulation scale; /* [B or 1, M, E] */
  vorta_modulation shift; /* [B or 1, M, E] */
  void* residual_output;  /* [B, X, E], every element is written */
  void* output;           /* as in NormModulate */
  void* quantized;        /* as in NormModulate */
  float* quantized_scale; /* as in NormModulate */
  int64_t residual_stride[2];
  int64_t update_stride[2];
  int64_t residual_output_stride[2];
  int64_t output_stride[2];
} vorta_residual_norm_modulate_params;

VORTA_API vorta_status vorta_residual_norm_modulate_validate(const vorta_residual_norm_modulate_params* params);
VORTA_API vorta_status vorta_residual_norm_modulate_enqueue(const vorta_residual_norm_modulate_params* params,
                                                            void* stream);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* VORTA_TRT_BLOCK_OPERATORS_H_ */
