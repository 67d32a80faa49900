// SPDX-License-Identifier: Apache-2.0
//
// vorta_ulysses_attention: pack, exchange, attention, exchange, unpack.
#include "vorta_trt/ulysses_attention.h"

#include "cuda_error.h"
#include "exchange/buffers.h"
#include "exchange/communicator.h"
#include "exchange/pack.h"
#include "last_error.h"
#include "tensor_checks.h"
#include "validate.h"

namespace vorta::exchange {
namespace {

using Params = vorta_ulysses_attention_params;

constexpr int kWorkspaceAlignment = 256;
constexpr int kVectorElements = 8;  // of 16 bytes
constexpr int kAllParts = VORTA_ULYSSES_TO_HEADS | VORTA_ULYSSES_ATTEND | VORTA_ULYSSES_TO_TOKENS;

vorta_status validate(const Params* params) {
  if (params == nullptr) {
    return fail(VORTA_INVALID_ARGUMENT, "params NULL: must point to a vorta_ulysses_attention_params; pass one");
  }
  if (params->struct_size != sizeof(*params)) {
    return fail(VORTA_INVALID_ARGUMENT,
                "params.struct_size %zu: must be %zu in this library (API version %d); set it to sizeof(*params) and "
                "compile against the same header",
                params->struct_size, sizeof(*params), VORTA_API_VERSION);
  }
  if (vorta_status status = validate_problem(&params->attention)) return status;
  if (params->ranks < 1 || params->ranks > VORTA_MOST_RANKS || params->attention.heads % params->ranks != 0) {
    return fail(VORTA_INVALID_ARGUMENT,
                "ranks %d: must be 1 to %d and divide the %d heads, for every GPU attends with equally many; use a "
                "number of GPUs that does",
                params->ranks, VORTA_MOST_RANKS, params->attention.heads);
  }
  if (params->parts < 0 || params->parts > kAllParts) {
    return fail(VORTA_INVALID_ARGUMENT, "parts %d: must be a sum of values of vorta_ulysses_part; pass 0 for all",
                params->parts);
  }
  if (params->tensor_heads != 0 && params->tensor_heads < params->attention.heads) {
    return fail(VORTA_INVALID_ARGUMENT, "tensor_heads %d: must be at least the %d heads of the call; pass 0 for those",
                params->tensor_heads, params->attention.heads);
  }
  return VORTA_OK;
}

/// The problem that one rank attends to: its heads of all tokens.
vorta_routed_attention_problem problem_of_rank(const Params& params) {
  vorta_routed_attention_problem problem = params.attention;
  problem.heads /= params.ranks;
  return problem;
}

vorta_status find_buffers(const Params& params, Buffers* buffers) {
  const vorta_routed_attention_problem problem = problem_of_rank(params);
  size_t attention_bytes = 0;
  if (vorta_status status = vorta_routed_attention_workspace_size(&problem, &attention_bytes)) return status;
  *buffers = Buffers(Shards(params), attention_bytes);
  return VORTA_OK;
}

vorta_status check_int32(const char* name, const char* shape, const int32_t* pointer) {
  if (pointer != nullptr && is_aligned(pointer, sizeof(int32_t))) return VORTA_OK;
  return fail(VORTA_INVALID_ARGUMENT, "%s %p: must be an aligned device pointer to int32 %s; pass one", name,
              static_cast<const void*>(pointer), shape);
}

/// Checks the tensors of the call. The attention does not see them: it gets the exchanged ones in the workspace.
vorta_status validate_tensors(const Params& params, const Shards& shards, size_t workspace_bytes) {
  const vorta_routed_attention_tensors& t = params.tensors;
  const int64_t size[3] = {shards.batch, shards.shard + shards.text_tokens, shards.tensor_heads};
  const auto check = [&](const char* name, const void* pointer, const int64_t (&stride)[3], Access access) {
    Extent extent{};
    return check_tensor(name, "[B, X+T, N, D]", pointer, stride, size, shards.head_dim, access, &extent);
  };
  if (vorta_status status = check("query", t.query, t.query_stride, Access::kRead)) return status;
  if (vorta_status status = check("key", t.key, t.key_stride, Access::kRead)) return status;
  if (vorta_status status = check("value", t.value, t.value_stride, Access::kRead)) return status;
  if (vorta_status status = check("output", t.output, t.output_stride, Access::kWritten)) return status;
  if (vorta_status status = check_int32("routes", "[B, N]", t.routes)) return status;
  if (vorta_status status = check_int32("head_order", "[N]", params.head_order)) return status;
  if (t.workspace == nullptr || !is_aligned(t.workspace, kWorkspaceAlignment) || t.workspace_bytes < workspace_bytes) {
    return fail(VORTA_INVALID_ARGUMENT,
                "workspace %p of %zu bytes: must be a device pointer aligned to %d bytes, of at least the %zu bytes "
                "that vorta_ulysses_attention_workspace_size says; pass one",
                t.workspace, t.workspace_bytes, kWorkspaceAlignment, workspace_bytes);
  }
  return VORTA_OK;
}

TokenTensor in_vectors(const void* data, const int64_t (&stride)[3]) {
  return {static_cast<uint4*>(const_cast<void*>(data)), stride[0] / kVectorElements, stride[1] / kVectorElements,
          stride[2] / kVectorElements};
}

/// One call that has been checked, with the addresses of its buffers.
class Call {
 public:
  Call(const Params& params, const Communicator& communicator, const Buffers& buffers, cudaStream_t stream)
      : params_(params), communicator_(communicator), shards_(params), buffers_(buffers), stream_(stream) {
    auto* workspace = static_cast<char*>(params.tensors.workspace);
    heads_ = workspace + buffers.heads;
    output_ = workspace + buffers.output;
    routes_ = reinterpret_cast<int32_t*>(workspace + buffers.routes);
    shared_ = workspace + buffers.shared;
  }

  vorta_status enqueue() {
    const int parts = params_.parts == 0 ? kAllParts : params_.parts;
    if (vorta_status status = parts & VORTA_ULYSSES_TO_HEADS ? to_heads() : VORTA_OK) return status;
    if (vorta_status status = parts & VORTA_ULYSSES_ATTEND ? attend() : VORTA_OK) return status;
    return parts & VORTA_ULYSSES_TO_TOKENS ? to_tokens() : VORTA_OK;
  }

 private:
  vorta_status to_heads() const {
    if (cudaError_t error = pack()) return report("pack", error);
    return params_.rehearsal != 0 ? VORTA_OK : exchange_heads();
  }

  vorta_status to_tokens() const {
    if (vorta_status status = params_.rehearsal != 0 ? VORTA_OK : exchange_output()) return status;
    if (cudaError_t error = unpack()) return report("unpack", error);
    return VORTA_OK;
  }

  size_t row_bytes() const { return shards_.row() * sizeof(uint16_t); }
  int64_t tokens() const { return shards_.video_tokens + shards_.text_tokens; }

  PackCall pack_call() const {
    PackCall call{};
    call.head_order = params_.head_order;
    call.rank = communicator_.rank;
    call.ranks = shards_.ranks;
    call.batch = shards_.batch;
    call.heads = shards_.tensor_heads;
    call.places = shards_.heads;
    call.rank_heads = shards_.rank_heads;
    call.head_vectors = shards_.head_dim / kVectorElements;
    call.own_tokens = static_cast<int>(shards_.count(communicator_.rank));
    call.shard = static_cast<int>(shards_.shard);
    call.text_tokens = shards_.text_tokens;
    call.row = shards_.row() / kVectorElements;
    call.own_first = shards_.first(communicator_.rank);
    call.tokens = tokens();
    call.buffer = reinterpret_cast<uint4*>(shared_);
    return call;
  }

  cudaError_t pack() const {
    const vorta_routed_attention_tensors& t = params_.tensors;
    const Pack pack{
        pack_call(),
        {in_vectors(t.query, t.query_stride), in_vectors(t.key, t.key_stride), in_vectors(t.value, t.value_stride)},
        reinterpret_cast<uint4*>(heads_),
        t.routes,
        routes_};
    return launch_pack(pack, stream_);
  }

  /// Sends `packed` to the `heads` of all other ranks.
  vorta_status exchange_heads() const {
    const size_t row = 3 * row_bytes();
    Exchange exchange(communicator_, stream_);
    for_peers(communicator_, [&](int peer) {
      for (int b = 0; b < shards_.batch; ++b) {
        exchange.send(shared_ + (int64_t{peer} * shards_.batch + b) * shards_.shard * row,
                      shards_.count(communicator_.rank) * row, peer);
        exchange.receive(heads_ + (b * tokens() + shards_.first(peer)) * row, shards_.count(peer) * row, peer);
      }
    });
    return exchange.end();
  }

  vorta_status attend() const {
    const vorta_routed_attention_problem problem = problem_of_rank(params_);
    const int64_t row = shards_.row();
    vorta_routed_attention_tensors tensors{};
    tensors.struct_size = sizeof(tensors);
    tensors.query = heads_;
    tensors.key = heads_ + row_bytes();
    tensors.value = heads_ + 2 * row_bytes();
    tensors.routes = routes_;
    tensors.text_length = params_.tensors.text_length;
    tensors.output = output_;
    for (auto* strides : {&tensors.query_stride, &tensors.key_stride, &tensors.value_stride}) {
      set(*strides, 3 * row);
    }
    set(tensors.output_stride, row);
    tensors.workspace = shared_;
    tensors.workspace_bytes = buffers_.bytes - buffers_.shared;
    return vorta_routed_attention_enqueue(&problem, &tensors, stream_);
  }

  /// Sends every rank its own tokens of `output`, and the text rows, which every rank needs.
  vorta_status exchange_output() const {
    const size_t row = row_bytes(), text = shards_.text_tokens * row;
    const int64_t returned_rows = shards_.shard + shards_.text_tokens;
    Exchange exchange(communicator_, stream_);
    for_peers(communicator_, [&](int peer) {
      for (int b = 0; b < shards_.batch; ++b) {
        const char* output = output_ + b * tokens() * row;
        char* returned = shared_ + (int64_t{peer} * shards_.batch + b) * returned_rows * row;
        exchange.send(output + shards_.first(peer) * row, shards_.count(peer) * row, peer);
        exchange.receive(returned, shards_.count(communicator_.rank) * row, peer);
        exchange.send(output + shards_.video_tokens * row, text, peer);
        exchange.receive(returned + shards_.shard * row, text, peer);
      }
    });
    return exchange.end();
  }

  cudaError_t unpack() const {
    const Unpack unpack{pack_call(), in_vectors(params_.tensors.output, params_.tensors.output_stride),
                        reinterpret_cast<const uint4*>(output_)};
    return launch_unpack(unpack, stream_);
  }

  /// Strides of [B, S+T, H, D] whose rows are `row` elements apart.
  void set(int64_t (&strides)[3], int64_t row) const {
    strides[0] = tokens() * row;
    strides[1] = row;
    strides[2] = shards_.head_dim;
  }

  const Params& params_;
  const Communicator& communicator_;
  const Shards shards_;
  const Buffers& buffers_;
  cudaStream_t stream_;
  char *heads_, *output_, *shared_;
  int32_t* routes_;
};

}  // namespace
}  // namespace vorta::exchange

using namespace vorta::exchange;

vorta_status vorta_ulysses_attention_validate(const vorta_ulysses_attention_params* params) { return validate(params); }

vorta_status vorta_ulysses_attention_workspace_size(const vorta_ulysses_attention_params* params, size_t* bytes) {
  if (vorta_status status = validate(params)) return status;
  if (bytes == nullptr) {
    return vorta::fail(VORTA_INVALID_ARGUMENT, "bytes NULL: must point to a size_t that takes the answer; pass one");
  }
  Buffers buffers;
  if (vorta_status status = find_buffers(*params, &buffers)) return status;
  *bytes = vorta::is_empty(params->attention) ? 0 : buffers.bytes;
  return VORTA_OK;
}

vorta_status vorta_ulysses_attention_enqueue(const vorta_ulysses_attention_params* params, void* stream) {
  size_t workspace_bytes = 0;
  if (vorta_status status = vorta_ulysses_attention_workspace_size(params, &workspace_bytes)) return status;
  if (vorta::is_empty(params->attention)) return VORTA_OK;
  if (vorta_status status = validate_tensors(*params, Shards(*params), workspace_bytes)) return status;
  Communicator communicator{nullptr, nullptr, params->ranks, 0, 0};
  if (params->rehearsal == 0) {
    if (vorta_status status = find_communicator(params->ranks, &communicator)) return status;
  }
  Buffers buffers;
  if (vorta_status status = find_buffers(*params, &buffers)) return status;
  return Call(*params, communicator, buffers, static_cast<cudaStream_t>(stream)).enqueue();
}
