// SPDX-License-Identifier: Apache-2.0
//
// The communicators of the process, and the one way in which bytes go from rank to rank.
#ifndef VORTA_TRT_KERNELS_EXCHANGE_COMMUNICATOR_H_
#define VORTA_TRT_KERNELS_EXCHANGE_COMMUNICATOR_H_

#include <cstddef>

#include "exchange/nccl_api.h"

namespace vorta::exchange {

struct Communicator {
  const nccl::Functions* functions;
  nccl::Comm comm;
  int ranks, rank;
  int device;
};

/// Finds the communicator of `ranks` on the current device. If there is none, fails with a remedy.
vorta_status find_communicator(int ranks, Communicator* found) noexcept;

/// Calls function(peer) for every other rank. Each rank begins with the next rank and wraps around.
template <class Function>
void for_peers(const Communicator& communicator, const Function& function) {
  for (int step = 1; step < communicator.ranks; ++step) function((communicator.rank + step) % communicator.ranks);
}

/// Messages of one exchange, which go out together when it ends. Between two ranks they arrive in the order in which
/// they were sent. After the first failure nothing more is sent.
class Exchange {
 public:
  Exchange(const Communicator& communicator, cudaStream_t stream) noexcept;
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;
  ~Exchange() { end(); }

  /// Nothing is sent or received where `bytes` is 0.
  void send(const void* data, size_t bytes, int peer) noexcept;
  void receive(void* data, size_t bytes, int peer) noexcept;

  /// Enqueues all messages on the stream. Fails if NCCL has refused anything.
  vorta_status end() noexcept;

 private:
  void note(nccl::Result result) noexcept;

  const Communicator& communicator_;
  cudaStream_t stream_;
  nccl::Result first_error_ = nccl::kSuccess;
  bool is_open_ = false;
};

}  // namespace vorta::exchange

#endif  // VORTA_TRT_KERNELS_EXCHANGE_COMMUNICATOR_H_
