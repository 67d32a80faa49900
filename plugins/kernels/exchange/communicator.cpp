// SPDX-License-Identifier: Apache-2.0
#include "exchange/communicator.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <vector>

#include "cuda_error.h"
#include "exchange/known_answer.h"
#include "exchange/nccl_library.h"
#include "last_error.h"

namespace vorta::exchange {
namespace {

struct Registry {
  std::mutex mutex;
  std::vector<Communicator> communicators;

  /// `mutex` must be held, as for has_any().
  std::vector<Communicator>::iterator find(int ranks, int device) {
    return std::find_if(communicators.begin(), communicators.end(),
                        [&](const Communicator& c) { return c.ranks == ranks && c.device == device; });
  }
  /// Removes the communicator of `ranks` on the current device; `taken` stays as it is where there is none.
  vorta_status take(int ranks, Communicator* taken) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (!has_any(ranks)) return VORTA_OK;
    int device = 0;
    if (cudaError_t error = cudaGetDevice(&device)) return report("current device", error);
    const auto entry = find(ranks, device);
    if (entry == communicators.end()) return VORTA_OK;
    *taken = *entry;
    communicators.erase(entry);
    return VORTA_OK;
  }
  bool has(int ranks, int device) {
    const std::lock_guard<std::mutex> lock(mutex);
    return find(ranks, device) != communicators.end();
  }
  bool has_any(int ranks) {
    return std::any_of(communicators.begin(), communicators.end(),
                       [&](const Communicator& c) { return c.ranks == ranks; });
  }
};

Registry& registry() {  // lives until the process ends: NCCL must not be left by a destructor of static objects
  static auto* made = new Registry;
  return *made;
}

vorta_status check_ranks(int ranks) {
  if (ranks >= 1 && ranks <= VORTA_MOST_RANKS) return VORTA_OK;
  return fail(VORTA_INVALID_ARGUMENT, "ranks %d: must be 1 to %d; give the number of GPUs", ranks, VORTA_MOST_RANKS);
}

vorta_status is_missing(int ranks) {
  return fail(VORTA_INVALID_ARGUMENT,
              "ranks %d: this process has no communicator of %d GPUs on the current device; start one process for each "
              "GPU, and let each call vorta_communicator_init before the first layer that exchanges",
              ranks, ranks);
}

/// Does the work of vorta_communicator_init(), except for the registry.
vorta_status join(const uint8_t* id, double timeout_seconds, Communicator* joined) {
  nccl::UniqueId name;
  std::memcpy(name.internal, id, sizeof(name.internal));
  const nccl::Functions& functions = *joined->functions;
  if (nccl::Result result = functions.CommInitRank(&joined->comm, joined->ranks, name, joined->rank)) {
    return nccl::report("ncclCommInitRank", functions, result, nullptr);
  }
  return exchange_known_answer(*joined, timeout_seconds);
}

}  // namespace

vorta_status find_communicator(int ranks, Communicator* found) noexcept {
  if (vorta_status status = check_ranks(ranks)) return status;
  Registry& r = registry();
  const std::lock_guard<std::mutex> lock(r.mutex);
  if (!r.has_any(ranks)) return is_missing(ranks);  // needs no GPU to say so
  int device = 0;
  if (cudaError_t error = cudaGetDevice(&device)) return report("current device", error);
  const auto entry = r.find(ranks, device);
  if (entry == r.communicators.end()) return is_missing(ranks);
  *found = *entry;
  return VORTA_OK;
}

Exchange::Exchange(const Communicator& communicator, cudaStream_t stream) noexcept
    : communicator_(communicator), stream_(stream) {
  note(communicator.functions->GroupStart());
  is_open_ = first_error_ == nccl::kSuccess;
}

void Exchange::note(nccl::Result result) noexcept {
  if (first_error_ == nccl::kSuccess) first_error_ = result;
}

void Exchange::send(const void* data, size_t bytes, int peer) noexcept {
  if (bytes == 0 || first_error_ != nccl::kSuccess) return;
  note(communicator_.functions->Send(data, bytes, nccl::kInt8, peer, communicator_.comm, stream_));
}

void Exchange::receive(void* data, size_t bytes, int peer) noexcept {
  if (bytes == 0 || first_error_ != nccl::kSuccess) return;
  note(communicator_.functions->Recv(data, bytes, nccl::kInt8, peer, communicator_.comm, stream_));
}

vorta_status Exchange::end() noexcept {
  if (is_open_) note(communicator_.functions->GroupEnd());
  is_open_ = false;
  if (first_error_ == nccl::kSuccess) return VORTA_OK;
  return nccl::report("exchange", *communicator_.functions, first_error_, communicator_.comm);
}

}  // namespace vorta::exchange

using vorta::fail;
using vorta::exchange::Communicator;

vorta_status vorta_communicator_create_id(uint8_t id[VORTA_COMMUNICATOR_ID_BYTES]) {
  if (id == nullptr) {
    return fail(VORTA_INVALID_ARGUMENT, "id NULL: must point to %d bytes that take the answer; pass them",
                VORTA_COMMUNICATOR_ID_BYTES);
  }
  const vorta::nccl::Functions* functions = nullptr;
  if (vorta_status status = vorta::nccl::find_library(&functions)) return status;
  vorta::nccl::UniqueId name;
  if (vorta::nccl::Result result = functions->GetUniqueId(&name)) {
    return vorta::nccl::report("ncclGetUniqueId", *functions, result, nullptr);
  }
  std::memcpy(id, name.internal, sizeof(name.internal));
  return VORTA_OK;
}

vorta_status vorta_communicator_init(const uint8_t id[VORTA_COMMUNICATOR_ID_BYTES], int32_t ranks, int32_t rank,
                                     double timeout_seconds) {
  using namespace vorta::exchange;
  if (id == nullptr) {
    return fail(VORTA_INVALID_ARGUMENT,
                "id NULL: must point to the %d bytes of vorta_communicator_create_id; pass them",
                VORTA_COMMUNICATOR_ID_BYTES);
  }
  if (vorta_status status = check_ranks(ranks)) return status;
  if (rank < 0 || rank >= ranks) {
    return fail(VORTA_INVALID_ARGUMENT, "rank %d: must be 0 to %d, for ranks are %d; give each process its own number",
                rank, ranks - 1, ranks);
  }
  if (!(timeout_seconds > 0)) {
    return fail(VORTA_INVALID_ARGUMENT, "timeout_seconds %g: must be positive; give 60, say", timeout_seconds);
  }
  Communicator joined{nullptr, nullptr, ranks, rank, 0};
  if (vorta_status status = vorta::nccl::find_library(&joined.functions)) return status;
  if (cudaError_t error = cudaGetDevice(&joined.device)) return vorta::report("current device", error);
  Registry& r = registry();
  if (r.has(ranks, joined.device)) {
    return fail(VORTA_INVALID_ARGUMENT,
                "ranks %d: this process has a communicator of %d GPUs on device %d already; leave that one with "
                "vorta_communicator_destroy first",
                ranks, ranks, joined.device);
  }
  // Nothing is locked meanwhile, for another rank may be a thread of this process.
  if (vorta_status status = join(id, timeout_seconds, &joined)) return status;
  const std::lock_guard<std::mutex> lock(r.mutex);
  r.communicators.push_back(joined);
  return VORTA_OK;
}

vorta_status vorta_communicator_check(int32_t ranks) {
  Communicator found{};
  if (vorta_status status = vorta::exchange::find_communicator(ranks, &found)) return status;
  vorta::nccl::Result state = vorta::nccl::kSuccess;
  vorta::nccl::Result result = found.functions->CommGetAsyncError(found.comm, &state);
  if (result == vorta::nccl::kSuccess) result = state;
  if (result == vorta::nccl::kSuccess || result == vorta::nccl::kInProgress) return VORTA_OK;
  return vorta::nccl::report("exchange", *found.functions, result, found.comm);
}

vorta_status vorta_communicator_rank(int32_t ranks, int32_t* rank) {
  if (rank == nullptr) {
    return fail(VORTA_INVALID_ARGUMENT, "rank NULL: must point to an int32_t that takes the answer; pass one");
  }
  Communicator found{};
  if (vorta_status status = vorta::exchange::find_communicator(ranks, &found)) return status;
  *rank = found.rank;
  return VORTA_OK;
}

vorta_status vorta_communicator_destroy(int32_t ranks, int32_t abort) {
  using namespace vorta::exchange;
  if (vorta_status status = check_ranks(ranks)) return status;
  Communicator left{};
  if (vorta_status status = registry().take(ranks, &left)) return status;
  if (left.comm == nullptr) return VORTA_OK;
  // Nothing is locked meanwhile: NCCL may wait here, for CUDA graphs that hold the communicator, say.
  const auto leave = abort != 0 ? left.functions->CommAbort : left.functions->CommDestroy;
  if (vorta::nccl::Result result = leave(left.comm)) {
    return vorta::nccl::report("leaving the communicator", *left.functions, result, nullptr);
  }
  return VORTA_OK;
}
