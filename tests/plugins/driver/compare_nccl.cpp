// SPDX-License-Identifier: Apache-2.0
//
// Compiles if our declarations of NCCL agree with its header.
#include <nccl.h>

#include "agree.h"
#include "exchange/nccl_api.h"

using namespace vorta::nccl;

static_assert(kSuccess == ncclSuccess && kInProgress == ncclInProgress && kInt8 == ncclInt8);
static_assert(sizeof(UniqueId) == sizeof(ncclUniqueId) && alignof(UniqueId) == alignof(ncclUniqueId));

#define COMPARE(result, name, arguments) \
  static_assert(Agree<decltype(Functions::name), decltype(&nccl##name)>::value, #name);
VORTA_NCCL_FUNCTIONS(COMPARE)
