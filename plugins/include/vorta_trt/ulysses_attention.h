/* SPDX-License-Identifier: Apache-2.0
 *
 * C API of libvorta_trt: routed attention of a sequence whose tokens lie on several GPUs (Ulysses). Every rank has some
 * tokens of all heads; they are exchanged so that every rank has all tokens of some heads, attends, and gets back the
 * output of its tokens. The communicator is that of communicator.h; everything else as in routed_attention.h.
 *
 * Letters: P ranks, B batch, S video tokens, T text tokens, N heads, D head dimension, and X = S / P, rounded up: the
 * video tokens of a rank. Rank p has tokens p X to (p + 1) X - 1; the last ranks have fewer where S does not fill them,
 * and rows of padding behind them, which nobody reads. Every rank has all T text tokens behind its X rows.
 */
#ifndef VORTA_TRT_ULYSSES_ATTENTION_H_
#define VORTA_TRT_ULYSSES_ATTENTION_H_

#include <stddef.h>
#include <stdint.h>

#include "communicator.h"
#include "routed_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What a call consists of, in this order. */
typedef enum vorta_ulysses_part {
  VORTA_ULYSSES_TO_HEADS = 1,  /* pack, and exchange query, key and value */
  VORTA_ULYSSES_ATTEND = 2,    /* the attention */
  VORTA_ULYSSES_TO_TOKENS = 4, /* exchange the output, and unpack */
} vorta_ulysses_part;

/* A call. `attention` is the problem of all ranks together: the grid of the whole video and all N heads, of which P
 * must be a divisor. Of `tensors`, query, key, value and output are this rank's rows [B, X+T, N, D], routes are
 * [B, N] of all heads, and the workspace is the exchange's, too. The output has the attention of this rank's video
 * tokens, zeros for its padding, and all text rows.
 *
 * `head_order` gives rank p the heads head_order[p N/P] to head_order[(p + 1) N/P - 1]. It is a permutation, the same
 * on every rank, as routes and text_length are. Like routes it is read on the device, must not change until the work
 * ends, and values out of range harm nothing but the output.
 *
 * `parts` may split a call into several, which take the same params, workspace included, and follow each other in the
 * order above: for measurements, or to run exchanges on another stream than the attention, with events between. Other
 * calls of the same ranks may come between; their exchanges come in the same order on every rank.
 *
 * `tensor_heads` other than 0 says that query, key, value and output have so many heads [B, X+T, tensor_heads, D], and
 * routes too, of which the call computes `attention.heads`: those that `head_order` [attention.heads] names, whose
 * output alone is written. Two such calls with a half of the heads each can overlap. */
typedef struct vorta_ulysses_attention_params {
  size_t struct_size; /* sizeof(vorta_ulysses_attention_params), set by the caller */
  int32_t ranks;      /* P */
  int32_t rehearsal;  /* other than 0: launch all but the exchange, for timing where there is no communicator; the
                         output means nothing */
  vorta_routed_attention_problem attention;
  vorta_routed_attention_tensors tensors;
  const int32_t* head_order; /* int32 [N] */
  int32_t parts;             /* a sum of vorta_ulysses_part; 0 for all */
  int32_t tensor_heads;      /* 0: N, those of `attention` */
} vorta_ulysses_attention_params;

/* Validates everything but `tensors` and `head_order`, without touching a GPU. */
VORTA_API vorta_status vorta_ulysses_attention_validate(const vorta_ulysses_attention_params* params);

/* Bytes of workspace, the same on every rank. Looks at what vorta_ulysses_attention_validate() looks at. */
VORTA_API vorta_status vorta_ulysses_attention_workspace_size(const vorta_ulysses_attention_params* params,
                                                              size_t* bytes);

/* Enqueues the operator, or the parts of it that are asked for, on `stream` (a cudaStream_t) of the current device:
 * pack, exchange, attention, exchange, unpack. All ranks call it with the same problem, in the same order of calls. No
 * host synchronisation, no allocation; may be captured into a CUDA graph, on all ranks alike. Fails if the process has
 * no communicator of P ranks on this device. */
VORTA_API vorta_status vorta_ulysses_attention_enqueue(const vorta_ulysses_attention_params* params, void* stream);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* VORTA_TRT_ULYSSES_ATTENTION_H_ */
