/* SPDX-License-Identifier: Apache-2.0
 *
 * C API of libvorta_trt: the communicators over which the processes of several GPUs exchange tokens and heads. NCCL 2
 * is opened when the first of these functions needs it: the file that the environment variable VORTA_TRT_NCCL names,
 * else the libnccl.so.2 that the process has loaded (torch's CUDA build does), that the loader finds, that was
 * suggested, or that of NVIDIA's wheels beside this package.
 *
 * A process has at most one communicator for each number of ranks and GPU, so that the layers of an engine find it by
 * the number of GPUs that the engine is built for. Statuses and vorta_last_error() are those of routed_attention.h:
 * VORTA_UNSUPPORTED without NCCL, VORTA_CUDA_ERROR where NCCL or another rank fails.
 */
#ifndef VORTA_TRT_COMMUNICATOR_H_
#define VORTA_TRT_COMMUNICATOR_H_

#include <stdint.h>

#include "routed_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

#define VORTA_COMMUNICATOR_ID_BYTES 128
#define VORTA_MOST_RANKS 1024

/* Names a libnccl.so.2 to try where neither the process nor the loader has one; NULL for none. */
VORTA_API void vorta_suggest_nccl(const char* path);

/* Path of the NCCL that is used; "" if there is none. */
VORTA_API const char* vorta_nccl_path(void);

/* Version of NCCL in its own form, such as 22703 for 2.27.3. */
VORTA_API vorta_status vorta_nccl_version(int32_t* version);

/* Makes the id by which the ranks of one communicator find each other. One rank calls it and sends the bytes to the
 * others. Needs no GPU. */
VORTA_API vorta_status vorta_communicator_create_id(uint8_t id[VORTA_COMMUNICATOR_ID_BYTES]);

/* Joins a communicator of `ranks` processes as number `rank` on the current device, waits for the others, and exchanges
 * known values between every two ranks on a stream of its own, which also opens every connection: a later exchange may
 * be the first thing that a CUDA graph captures. Fails, and leaves no communicator, unless every value arrives within
 * `timeout_seconds`. The wait for ranks that do not come at all is NCCL's own and not limited by that.
 *
 * All ranks call it with the same `id` and `ranks`. */
VORTA_API vorta_status vorta_communicator_init(const uint8_t id[VORTA_COMMUNICATOR_ID_BYTES], int32_t ranks,
                                               int32_t rank, double timeout_seconds);

/* Fails if NCCL has met an error since the communicator was joined, such as a rank that died, or if there is no such
 * communicator on the current device. Does not wait for anything. */
VORTA_API vorta_status vorta_communicator_check(int32_t ranks);

/* Gives the number of this process in the communicator of `ranks` on the current device. */
VORTA_API vorta_status vorta_communicator_rank(int32_t ranks, int32_t* rank);

/* Leaves the communicator. Work that uses it must have ended, and CUDA graphs that hold it must not run again. With
 * `abort` other than 0 it waits for nobody: for a process that ends because another rank has failed. Succeeds if there
 * is no such communicator. */
VORTA_API vorta_status vorta_communicator_destroy(int32_t ranks, int32_t abort);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* VORTA_TRT_COMMUNICATOR_H_ */
