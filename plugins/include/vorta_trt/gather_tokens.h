/* SPDX-License-Identifier: Apache-2.0
 *
 * C API of libvorta_trt: every rank gets the tokens of all ranks. Letters, shards and communicator are those of
 * ulysses_attention.h; C features of a token.
 */
#ifndef VORTA_TRT_GATHER_TOKENS_H_
#define VORTA_TRT_GATHER_TOKENS_H_

#include <stddef.h>
#include <stdint.h>

#include "communicator.h"
#include "routed_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A call. For an empty call (batch or row_bytes 0) nothing is read, written or sent. No workspace is needed. */
typedef struct vorta_gather_tokens_params {
  size_t struct_size; /* sizeof(vorta_gather_tokens_params), set by the caller */
  int32_t ranks;      /* P */
  int32_t rehearsal;  /* as in vorta_ulysses_attention_params */
  int32_t batch;      /* B, may be 0 */
  int32_t tokens;     /* S, at least 1 */
  int64_t row_bytes;  /* C times the bytes of an element */
  const void* input;  /* [B, X, C], dense: this rank's tokens, and padding behind them */
  void* output;       /* [B, S, C], dense, apart from the input */
} vorta_gather_tokens_params;

/* Validates everything but the pointers, without touching a GPU. */
VORTA_API vorta_status vorta_gather_tokens_validate(const vorta_gather_tokens_params* params);

/* Enqueues the operator on `stream` (a cudaStream_t) of the current device, under the rules of
 * vorta_ulysses_attention_enqueue(). */
VORTA_API vorta_status vorta_gather_tokens_enqueue(const vorta_gather_tokens_params* params, void* stream);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* VORTA_TRT_GATHER_TOKENS_H_ */
