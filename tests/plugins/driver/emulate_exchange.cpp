// SPDX-License-Identifier: Apache-2.0
//
// The exchange between GPUs without any: threads are ranks, host memory is theirs, kernels run thread by thread, and
// NCCL is a mailbox. In the place of the attention stands a sum of all tokens, in which every misplaced row shows.
// Everything else is the library's own source: registry, known-answer exchange, layouts, pack, unpack and gather.
#define VORTA_TRT_KERNELS_KERNEL_LAUNCH_H_  // its launches are those below
#include <cuda_runtime_api.h>
#include <vector_types.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#undef __global__
#undef __device__
#undef __forceinline__
#undef __grid_constant__
#undef __launch_bounds__
#define __global__
#define __device__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(threads)

static thread_local uint3 threadIdx, blockIdx;
static thread_local dim3 blockDim;
template <class Value>
Value __ldg(const Value* value) {
  return *value;
}
using std::max;
using std::min;

namespace vorta {
struct LaunchShape {
  dim3 grid;
  int threads;
  size_t shared_bytes;
  cudaStream_t stream;
};
template <class Call>
cudaError_t launch_kernel(const LaunchShape& shape, void (*kernel)(Call), const Call& call) {
  blockDim = dim3(shape.threads);
  for (blockIdx.y = 0; blockIdx.y < shape.grid.y; ++blockIdx.y) {
    for (blockIdx.x = 0; blockIdx.x < shape.grid.x; ++blockIdx.x) {
      for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) kernel(call);
    }
  }
  return cudaSuccess;
}
}  // namespace vorta

#include "cuda_error.h"
#include "exchange/nccl_library.h"
#include "exchange/pack.cu"  // after the launches that it calls
#include "last_error.h"
#include "vorta_trt/routed_attention.h"

// --- CUDA on the host ----------------------------------------------------------------------------------------------

static thread_local int device = 0;

extern "C" {
cudaError_t cudaGetDevice(int* found) {
  *found = device;
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** memory, size_t bytes) {
  *memory = new char[bytes];
  return cudaSuccess;
}
cudaError_t cudaFree(void* memory) {
  delete[] static_cast<char*>(memory);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = nullptr;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
}

// --- NCCL as a mailbox ---------------------------------------------------------------------------------------------

namespace {

struct Mailbox {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::tuple<int, int, int>, std::vector<char>> letters;  // from, to, number
} mailbox;

struct Rank {
  int number;
  std::map<int, int> sent, received;  // by peer, which may be the rank itself
};

bool damages = false;  // a bit of what is sent

using namespace vorta::nccl;

Result send(const void* data, size_t bytes, int, int peer, Comm comm, cudaStream_t) {
  auto* rank = reinterpret_cast<Rank*>(comm);
  const auto* begin = static_cast<const char*>(data);
  std::vector<char> letter(begin, begin + bytes);
  if (damages) letter[bytes / 2] ^= 1;
  const std::lock_guard<std::mutex> lock(mailbox.mutex);
  mailbox.letters[{rank->number, peer, rank->sent[peer]++}] = std::move(letter);
  mailbox.changed.notify_all();
  return kSuccess;
}

struct Awaited {
  std::tuple<int, int, int> letter;
  void* data;
  size_t bytes;
};
thread_local std::vector<Awaited> awaited;  // until the group ends

Result receive(void* data, size_t bytes, int, int peer, Comm comm, cudaStream_t) {
  auto* rank = reinterpret_cast<Rank*>(comm);
  awaited.push_back({{peer, rank->number, rank->received[peer]++}, data, bytes});
  return kSuccess;
}

Result end_group() {
  std::unique_lock<std::mutex> lock(mailbox.mutex);
  for (const Awaited& one : awaited) {
    if (!mailbox.changed.wait_for(lock, std::chrono::seconds(20),
                                  [&] { return mailbox.letters.count(one.letter) == 1; })) {
      return 6;
    }
    const std::vector<char>& letter = mailbox.letters[one.letter];
    if (letter.size() != one.bytes) return 4;
    std::memcpy(one.data, letter.data(), one.bytes);
    mailbox.letters.erase(one.letter);
  }
  awaited.clear();
  return kSuccess;
}

}  // namespace

namespace vorta {
vorta_status report(const char* step, cudaError_t) noexcept { return fail(VORTA_CUDA_ERROR, "%s", step); }
namespace nccl {
vorta_status find_library(const Functions** functions) noexcept {
  static Functions found;
  found.GetUniqueId = [](UniqueId*) -> Result { return kSuccess; };
  found.CommInitRank = [](Comm* comm, int, UniqueId, int rank) -> Result {
    *comm = reinterpret_cast<Comm>(new Rank{rank, {}, {}});
    return kSuccess;
  };
  found.CommDestroy = found.CommAbort = [](Comm comm) -> Result {
    delete reinterpret_cast<Rank*>(comm);
    return kSuccess;
  };
  found.CommGetAsyncError = [](Comm, Result* state) -> Result { return *state = kSuccess; };
  found.GroupStart = []() -> Result { return kSuccess; };
  found.GroupEnd = end_group;
  found.Send = send;
  found.Recv = receive;
  *functions = &found;
  return VORTA_OK;
}
vorta_status report(const char* step, const Functions&, Result result, Comm) noexcept {
  return fail(VORTA_CUDA_ERROR, "%s: result %d", step, result);
}
}  // namespace nccl
}  // namespace vorta

// --- The attention: query + the sum of all keys * (position + 1) + value * the route -------------------------------

extern "C" {

const char* vorta_last_error(void) { return vorta::last_error(); }

vorta_status vorta_routed_attention_workspace_size(const vorta_routed_attention_problem*, size_t* bytes) {
  *bytes = 1024;
  return VORTA_OK;
}

vorta_status vorta_routed_attention_enqueue(const vorta_routed_attention_problem* problem,
                                            const vorta_routed_attention_tensors* t, void*) {
  std::memset(t->workspace, 255, 1024);
  const int64_t tokens = int64_t{1} * problem->grid[0] * problem->grid[1] * problem->grid[2] + problem->text_tokens;
  const auto at = [](const void* data, const int64_t (&stride)[3], int64_t b, int64_t s, int64_t n) {
    return static_cast<uint16_t*>(const_cast<void*>(data)) + b * stride[0] + s * stride[1] + n * stride[2];
  };
  for (int b = 0; b < problem->batch; ++b) {
    for (int n = 0; n < problem->heads; ++n) {
      for (int d = 0; d < problem->head_dim; ++d) {
        uint16_t sum = 0;
        for (int64_t s = 0; s < tokens; ++s) sum += at(t->key, t->key_stride, b, s, n)[d] * (s + 1);
        for (int64_t s = 0; s < tokens; ++s) {
          at(t->output, t->output_stride, b, s, n)[d] =
              at(t->query, t->query_stride, b, s, n)[d] + sum +
              at(t->value, t->value_stride, b, s, n)[d] * t->routes[b * problem->heads + n];
        }
      }
    }
  }
  return VORTA_OK;
}

// For the test: which rank the calls of this thread are.
void emulate_rank(int32_t rank) { device = rank; }
void emulate_damage(int32_t on) { damages = on != 0; }
}
