// SPDX-License-Identifier: Apache-2.0
#include "vorta_trt/gather_tokens.h"

#include "cuda_error.h"
#include "exchange/communicator.h"
#include "exchange/shards.h"
#include "last_error.h"

namespace vorta::exchange {
namespace {

using Params = vorta_gather_tokens_params;

vorta_status validate(const Params* params) {
  if (params == nullptr) {
    return fail(VORTA_INVALID_ARGUMENT, "params NULL: must point to a vorta_gather_tokens_params; pass one");
  }
  if (params->struct_size != sizeof(*params)) {
    return fail(VORTA_INVALID_ARGUMENT,
                "params.struct_size %zu: must be %zu in this library (API version %d); set it to sizeof(*params) and "
                "compile against the same header",
                params->struct_size, sizeof(*params), VORTA_API_VERSION);
  }
  if (params->ranks < 1 || params->ranks > VORTA_MOST_RANKS) {
    return fail(VORTA_INVALID_ARGUMENT, "ranks %d: must be 1 to %d; give the number of GPUs", params->ranks,
                VORTA_MOST_RANKS);
  }
  if (params->batch < 0 || params->tokens < 1 || params->row_bytes < 0) {
    return fail(VORTA_INVALID_ARGUMENT,
                "batch %d, tokens %d, row_bytes %lld: must not be negative, with at least one token; give the shape of "
                "the output",
                params->batch, params->tokens, static_cast<long long>(params->row_bytes));
  }
  return VORTA_OK;
}

vorta_status enqueue(const Params& params, cudaStream_t stream) {
  Communicator communicator{nullptr, nullptr, params.ranks, 0, 0};
  if (params.rehearsal == 0) {
    if (vorta_status status = find_communicator(params.ranks, &communicator)) return status;
  }
  const TokenShards shards(params.ranks, params.tokens);
  const size_t row = params.row_bytes, own = shards.count(communicator.rank) * row;
  const size_t input_pitch = shards.shard * row, output_pitch = shards.video_tokens * row;
  const auto* input = static_cast<const char*>(params.input);
  auto* output = static_cast<char*>(params.output);
  for (int b = 0; own > 0 && b < params.batch; ++b) {
    char* target = output + b * output_pitch + shards.first(communicator.rank) * row;
    if (cudaError_t error = cudaMemcpyAsync(target, input + b * input_pitch, own, cudaMemcpyDeviceToDevice, stream)) {
      return report("gathering tokens", error);
    }
  }
  if (params.rehearsal != 0 || params.ranks == 1) return VORTA_OK;
  Exchange exchange(communicator, stream);
  for_peers(communicator, [&](int peer) {
    for (int b = 0; b < params.batch; ++b) {
      exchange.send(input + b * input_pitch, own, peer);
      exchange.receive(output + b * output_pitch + shards.first(peer) * row, shards.count(peer) * row, peer);
    }
  });
  return exchange.end();
}

}  // namespace
}  // namespace vorta::exchange

vorta_status vorta_gather_tokens_validate(const vorta_gather_tokens_params* params) {
  return vorta::exchange::validate(params);
}

vorta_status vorta_gather_tokens_enqueue(const vorta_gather_tokens_params* params, void* stream) {
  if (vorta_status status = vorta::exchange::validate(params)) return status;
  if (params->batch == 0 || params->row_bytes == 0) return VORTA_OK;
  if (params->input == nullptr || params->output == nullptr || params->input == params->output) {
    return vorta::fail(VORTA_INVALID_ARGUMENT,
                       "input %p, output %p: must be device pointers to [B, X, C] and [B, S, C], apart from each "
                       "other; pass them",
                       params->input, params->output);
  }
  return vorta::exchange::enqueue(*params, static_cast<cudaStream_t>(stream));
}
