/* SPDX-License-Identifier: Apache-2.0
 *
 * What libvorta_trt was built from and for: its families of attention kernels, its GPU architectures, its CUDA. No
 * call here touches a GPU. An engine bundle does not rely on this header, so it is not part of the ABI hash.
 */
#ifndef VORTA_TRT_KERNEL_FAMILIES_H_
#define VORTA_TRT_KERNEL_FAMILIES_H_

#include <stddef.h>
#include <stdint.h>

#include "routed_attention.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A family of attention kernels: one way to compute the operator, for some GPUs, one precision and some D. */
typedef struct vorta_kernel_family {
  const char* name;            /* its folder among the sources, e.g. "sm90" */
  int32_t attention_precision; /* vorta_attention_precision that it computes in */
  int32_t oldest_gpu;          /* oldest compute capability that it serves, as 10 * major + minor */
  int32_t newest_gpu;          /* newest compute capability that it serves, likewise */
  int32_t pads_head_dim;       /* 1: D of a call may be smaller than that of the instance; 0: it must be equal */
  const int32_t* head_dims;    /* D of its instances, ascending */
  size_t head_dim_count;
  const char* architectures; /* what it was compiled for in this library, as CMake spells it; "" if it was left out */
} vorta_kernel_family;

/* Every family of the sources, compiled in or not. Of those that serve a GPU, a precision and D, the first is the
 * fastest, and is the one that is launched if the library holds code of it for the GPU. */
VORTA_API const vorta_kernel_family* vorta_kernel_families(size_t* count);

/* Version of the CUDA runtime in the library, as CUDART_VERSION: 1000 * major + 10 * minor. The driver must be of the
 * same major version or a newer one. */
VORTA_API int32_t vorta_cuda_version(void);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* VORTA_TRT_KERNEL_FAMILIES_H_ */
