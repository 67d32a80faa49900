// SPDX-License-Identifier: Apache-2.0
//
// What we call of NCCL 2, declared in our own words, so that the library builds without its headers and runs without
// linking to it; tests/plugins/test_nccl_abi.py compares it with a real header.
#ifndef VORTA_TRT_KERNELS_EXCHANGE_NCCL_API_H_
#define VORTA_TRT_KERNELS_EXCHANGE_NCCL_API_H_

#include <cuda_runtime_api.h>

#include <cstddef>

#include "vorta_trt/communicator.h"

namespace vorta::nccl {

using Comm = struct OpaqueComm*;

/// ncclResult_t
using Result = int;
inline constexpr Result kSuccess = 0;
inline constexpr Result kInProgress = 7;

inline constexpr int kInt8 = 0;  // ncclDataType_t

/// ncclUniqueId, which is passed by value.
struct UniqueId {
  char internal[VORTA_COMMUNICATOR_ID_BYTES];
};

/// Everything that we call: result, name and arguments of the functions, which begin with nccl.
#define VORTA_NCCL_FUNCTIONS(X)                                                        \
  X(Result, GetVersion, (int*))                                                        \
  X(Result, GetUniqueId, (UniqueId*))                                                  \
  X(Result, CommInitRank, (Comm*, int ranks, UniqueId, int rank))                      \
  X(Result, CommDestroy, (Comm))                                                       \
  X(Result, CommAbort, (Comm))                                                         \
  X(Result, CommGetAsyncError, (Comm, Result*))                                        \
  X(const char*, GetErrorString, (Result))                                             \
  X(const char*, GetLastError, (Comm))                                                 \
  X(Result, GroupStart, ())                                                            \
  X(Result, GroupEnd, ())                                                              \
  X(Result, Send, (const void*, size_t count, int type, int peer, Comm, cudaStream_t)) \
  X(Result, Recv, (void*, size_t count, int type, int peer, Comm, cudaStream_t))

/// The functions of a loaded libnccl.
struct Functions {
#define VORTA_DECLARE(result, name, arguments) result(*name) arguments = nullptr;
  VORTA_NCCL_FUNCTIONS(VORTA_DECLARE)
#undef VORTA_DECLARE
};

}  // namespace vorta::nccl

#endif  // VORTA_TRT_KERNELS_EXCHANGE_NCCL_API_H_
