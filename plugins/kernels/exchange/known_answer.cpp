// SPDX-License-Identifier: Apache-2.0
#include "exchange/known_answer.h"

#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

#include "cuda_error.h"
#include "exchange/nccl_library.h"
#include "last_error.h"

namespace vorta::exchange {
namespace {

constexpr size_t kWords = 4096;  // between two ranks
constexpr size_t kBytes = kWords * sizeof(uint32_t);

/// A word that tells who sent it to whom, and where it stands.
uint32_t known_word(int from, int to, size_t index) {
  const uint32_t word = static_cast<uint32_t>(from) * 2654435761u ^ static_cast<uint32_t>(to) * 2246822519u ^
                        static_cast<uint32_t>(index) * 3266489917u;
  return word ^ word >> 15;
}

/// Memory and a stream of one exchange.
struct Room {
  Room() = default;
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  ~Room() {
    if (stream != nullptr) cudaStreamDestroy(stream);
    if (sent != nullptr) cudaFree(sent);
    if (received != nullptr) cudaFree(received);
  }
  cudaError_t allocate(size_t bytes) {
    if (cudaError_t error = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)) return error;
    if (cudaError_t error = cudaMalloc(reinterpret_cast<void**>(&sent), bytes)) return error;
    return cudaMalloc(reinterpret_cast<void**>(&received), bytes);
  }

  cudaStream_t stream = nullptr;
  char* sent = nullptr;
  char* received = nullptr;
};

/// Waits for the stream. Fails as soon as NCCL reports an error, or after the time.
vorta_status wait(const Communicator& c, cudaStream_t stream, double timeout_seconds) {
  const auto start = std::chrono::steady_clock::now();
  while (true) {
    const cudaError_t state = cudaStreamQuery(stream);
    if (state == cudaSuccess) return VORTA_OK;
    if (state != cudaErrorNotReady) return report("known-answer exchange", state);
    nccl::Result asynchronous = nccl::kSuccess;
    nccl::Result result = c.functions->CommGetAsyncError(c.comm, &asynchronous);
    if (result == nccl::kSuccess && asynchronous != nccl::kInProgress) result = asynchronous;
    if (result != nccl::kSuccess) return nccl::report("known-answer exchange", *c.functions, result, c.comm);
    if (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() > timeout_seconds) {
      return fail(VORTA_CUDA_ERROR,
                  "known-answer exchange: rank %d of %d has waited %g s for the others: every rank must come; see "
                  "their messages, and set NCCL_DEBUG=INFO to see how NCCL connects them",
                  c.rank, c.ranks, timeout_seconds);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

vorta_status compare(const Communicator& c, const std::vector<uint32_t>& received) {
  for (int peer = 0; peer < c.ranks; ++peer) {
    for (size_t i = 0; i < kWords; ++i) {
      const uint32_t found = received[peer * kWords + i], wanted = known_word(peer, c.rank, i);
      if (found == wanted) continue;
      return fail(VORTA_CUDA_ERROR,
                  "known-answer exchange: word %zu that rank %d sent to rank %d must be %08x, not %08x: NCCL moves "
                  "data wrongly on this machine; set NCCL_P2P_DISABLE=1 to see whether direct access between the GPUs "
                  "is at fault, and check that the ranks have the same NCCL",
                  i, peer, c.rank, wanted, found);
    }
  }
  return VORTA_OK;
}

vorta_status exchange_words(const Communicator& c, double timeout_seconds, Room& room) {
  std::vector<uint32_t> words(c.ranks * kWords);
  for (int peer = 0; peer < c.ranks; ++peer) {
    for (size_t i = 0; i < kWords; ++i) words[peer * kWords + i] = known_word(c.rank, peer, i);
  }
  const size_t bytes = c.ranks * kBytes;
  if (cudaError_t error = room.allocate(bytes)) return report("known-answer exchange", error);
  cudaError_t error = cudaMemcpyAsync(room.sent, words.data(), bytes, cudaMemcpyHostToDevice, room.stream);
  if (error == cudaSuccess) error = cudaMemsetAsync(room.received, 0, bytes, room.stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(room.stream);
  if (error != cudaSuccess) return report("known-answer exchange", error);
  Exchange exchange(c, room.stream);
  for (int peer = 0; peer < c.ranks; ++peer) {
    exchange.send(room.sent + peer * kBytes, kBytes, peer);
    exchange.receive(room.received + peer * kBytes, kBytes, peer);
  }
  if (vorta_status status = exchange.end()) return status;
  if (vorta_status status = wait(c, room.stream, timeout_seconds)) return status;
  if (cudaError_t failed = cudaMemcpy(words.data(), room.received, bytes, cudaMemcpyDeviceToHost)) {
    return report("known-answer exchange", failed);
  }
  return compare(c, words);
}

}  // namespace

vorta_status exchange_known_answer(const Communicator& communicator, double timeout_seconds) noexcept {
  Room room;
  const vorta_status status = exchange_words(communicator, timeout_seconds, room);
  // Also ends a kernel that waits for another rank, before the room is freed, which waits for all kernels.
  if (status != VORTA_OK) communicator.functions->CommAbort(communicator.comm);
  return status;
}

}  // namespace vorta::exchange
