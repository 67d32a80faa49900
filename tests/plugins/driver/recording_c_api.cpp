// SPDX-License-Identifier: Apache-2.0
//
// A C API without kernels: it prints what the plugin asks for. Linked with the plugin's sources it shows, on a machine
// without a GPU, that enqueue passes every pointer, stride and size on.
#include <cstdio>
#include <cstdlib>

#include "vorta_trt/block_operators.h"
#include "vorta_trt/cross_attention.h"
#include "vorta_trt/gather_tokens.h"
#include "vorta_trt/linear.h"
#include "vorta_trt/routed_attention.h"
#include "vorta_trt/ulysses_attention.h"

namespace {

void printStrides(const char* name, const int64_t (&strides)[3]) {
  std::printf("%s: %lld,%lld,%lld\n", name, static_cast<long long>(strides[0]), static_cast<long long>(strides[1]),
              static_cast<long long>(strides[2]));
}

void printTriple(const char* name, const int32_t (&values)[3]) {
  std::printf("%s: %d,%d,%d\n", name, values[0], values[1], values[2]);
}

void printStrides(const char* name, const int64_t (&strides)[2]) {
  std::printf("%s: %lld,%lld\n", name, static_cast<long long>(strides[0]), static_cast<long long>(strides[1]));
}

void printModulation(const char* name, const vorta_modulation& modulation) {
  std::printf("%s: %p %lld,%lld\n", name, static_cast<const void*>(modulation.data),
              static_cast<long long>(modulation.batch_stride), static_cast<long long>(modulation.row_stride));
}

template <typename Params>
void printHeads(const Params* params) {
  std::printf("sizes right: %d\n", params->struct_size == sizeof(*params));
  std::printf("params: dtype=%d weight_float32=%d batch=%d token_count=%d heads=%d head_dim=%d weight_length=%d",
              params->dtype, params->weight_float32, params->batch, params->token_count, params->heads,
              params->head_dim, params->weight_length);
  std::printf(" epsilon=%g\n", static_cast<double>(params->epsilon));
}

template <typename Params>
void printFeatures(const Params* params) {
  std::printf("sizes right: %d\n", params->struct_size == sizeof(*params));
  std::printf("params: dtype=%d batch=%d token_count=%d features=%d first_tokens=%d epsilon=%g\n", params->dtype,
              params->batch, params->token_count, params->features, params->first_tokens,
              static_cast<double>(params->epsilon));
  std::printf("quantized: %p %p\n", params->quantized, static_cast<const void*>(params->quantized_scale));
}

void printAttention(const vorta_routed_attention_problem* problem, const vorta_routed_attention_tensors* tensors,
                    void* stream) {
  std::printf("problem: dtype=%d batch=%d heads=%d head_dim=%d keep=%d coreset_keys=%d text_tokens=%d scale=%g",
              problem->dtype, problem->batch, problem->heads, problem->head_dim, problem->keep, problem->coreset_keys,
              problem->text_tokens, static_cast<double>(problem->scale));
  std::printf(" attention_precision=%d reserved=%d\n", problem->attention_precision, problem->reserved);
  printTriple("grid", problem->grid);
  printTriple("tile", problem->tile);
  printTriple("window", problem->window);
  printTriple("bucket", problem->bucket);
  std::printf("pointers: %p %p %p %p %p %p\n", tensors->query, tensors->key, tensors->value,
              static_cast<const void*>(tensors->routes), static_cast<const void*>(tensors->text_length),
              tensors->output);
  printStrides("query_stride", tensors->query_stride);
  printStrides("key_stride", tensors->key_stride);
  printStrides("value_stride", tensors->value_stride);
  printStrides("output_stride", tensors->output_stride);
  std::printf("workspace: %p %zu\nstream: %p\n", tensors->workspace, tensors->workspace_bytes, stream);
}

}  // namespace

vorta_status vorta_routed_attention_validate(const vorta_routed_attention_problem*) { return VORTA_OK; }

vorta_status vorta_routed_attention_workspace_size(const vorta_routed_attention_problem* problem, size_t* bytes) {
  *bytes = static_cast<size_t>(problem->batch) * 4096;
  return VORTA_OK;
}

vorta_status vorta_routed_attention_enqueue(const vorta_routed_attention_problem* problem,
                                            const vorta_routed_attention_tensors* tensors, void* stream) {
  std::printf("sizes right: %d\n",
              problem->struct_size == sizeof(*problem) && tensors->struct_size == sizeof(*tensors));
  printAttention(problem, tensors, stream);
  return VORTA_OK;
}

vorta_status vorta_ulysses_attention_validate(const vorta_ulysses_attention_params*) { return VORTA_OK; }

vorta_status vorta_ulysses_attention_workspace_size(const vorta_ulysses_attention_params* params, size_t* bytes) {
  *bytes = static_cast<size_t>(params->attention.batch) * 8192;
  return VORTA_OK;
}

vorta_status vorta_ulysses_attention_enqueue(const vorta_ulysses_attention_params* params, void* stream) {
  std::printf("params: ranks=%d rehearsal=%d\n", params->ranks, params->rehearsal);
  std::printf("head_order: %p\n", static_cast<const void*>(params->head_order));
  return vorta_routed_attention_enqueue(&params->attention, &params->tensors, stream);
}

vorta_status vorta_gather_tokens_validate(const vorta_gather_tokens_params*) { return VORTA_OK; }

vorta_status vorta_gather_tokens_enqueue(const vorta_gather_tokens_params* params, void* stream) {
  std::printf("sizes right: %d\n", params->struct_size == sizeof(*params));
  std::printf("params: ranks=%d rehearsal=%d batch=%d tokens=%d row_bytes=%lld\n", params->ranks, params->rehearsal,
              params->batch, params->tokens, static_cast<long long>(params->row_bytes));
  std::printf("pointers: %p %p\nstream: %p\n", params->input, params->output, stream);
  return VORTA_OK;
}

vorta_status vorta_cross_attention_validate(const vorta_cross_attention_params*) { return VORTA_OK; }

vorta_status vorta_cross_attention_enqueue(const vorta_cross_attention_params* params, void* stream) {
  std::printf("sizes right: %d\n", params->struct_size == sizeof(*params));
  std::printf("params: dtype=%d batch=%d query_tokens=%d key_tokens=%d heads=%d head_dim=%d scale=%g reserved=%d\n",
              params->dtype, params->batch, params->query_tokens, params->key_tokens, params->heads, params->head_dim,
              static_cast<double>(params->scale), params->reserved);
  std::printf("pointers: %p %p %p %p\n", params->query, params->key, params->value, params->output);
  printStrides("query_stride", params->query_stride);
  printStrides("key_stride", params->key_stride);
  printStrides("value_stride", params->value_stride);
  printStrides("output_stride", params->output_stride);
  std::printf("stream: %p\n", stream);
  return VORTA_OK;
}

vorta_status vorta_head_norm_validate(const vorta_head_norm_params*) { return VORTA_OK; }

vorta_status vorta_head_norm_enqueue(const vorta_head_norm_params* params, void* stream) {
  printHeads(params);
  std::printf("pointers: %p %p %p\n", params->tokens, params->weight, params->output);
  printStrides("tokens_stride", params->tokens_stride);
  printStrides("output_stride", params->output_stride);
  std::printf("stream: %p\n", stream);
  return VORTA_OK;
}

vorta_status vorta_qk_norm_rotary_validate(const vorta_qk_norm_rotary_params*) { return VORTA_OK; }

vorta_status vorta_qk_norm_rotary_enqueue(const vorta_qk_norm_rotary_params* params, void* stream) {
  printHeads(params);
  std::printf("pointers: %p %p %p %p %p %p %p %p\n", params->query, params->key, params->query_weight,
              params->key_weight, static_cast<const void*>(params->cos), static_cast<const void*>(params->sin),
              params->query_output, params->key_output);
  printStrides("query_stride", params->query_stride);
  printStrides("key_stride", params->key_stride);
  printStrides("query_output_stride", params->query_output_stride);
  printStrides("key_output_stride", params->key_output_stride);
  std::printf("stream: %p\n", stream);
  return VORTA_OK;
}

vorta_status vorta_norm_modulate_validate(const vorta_norm_modulate_params*) { return VORTA_OK; }

vorta_status vorta_norm_modulate_enqueue(const vorta_norm_modulate_params* params, void* stream) {
  printFeatures(params);
  std::printf("pointers: %p %p\n", params->tokens, params->output);
  printModulation("scale", params->scale);
  printModulation("shift", params->shift);
  printStrides("tokens_stride", params->tokens_stride);
  printStrides("output_stride", params->output_stride);
  std::printf("stream: %p\n", stream);
  return VORTA_OK;
}

vorta_status vorta_residual_norm_modulate_validate(const vorta_residual_norm_modulate_params*) { return VORTA_OK; }

vorta_status vorta_residual_norm_modulate_enqueue(const vorta_residual_norm_modulate_params* params, void* stream) {
  printFeatures(params);
  std::printf("pointers: %p %p %p %p\n", params->residual, params->update, params->residual_output, params->output);
  printModulation("gate", params->gate);
  printModulation("scale", params->scale);
  printModulation("shift", params->shift);
  printStrides("residual_stride", params->residual_stride);
  printStrides("update_stride", params->update_stride);
  printStrides("residual_output_stride", params->residual_output_stride);
  printStrides("output_stride", params->output_stride);
  std::printf("stream: %p\n", stream);
  return VORTA_OK;
}

vorta_status vorta_linear_validate(const vorta_linear_params*) { return VORTA_OK; }

vorta_status vorta_linear_workspace_size(const vorta_linear_params* params, size_t* bytes) {
  *bytes = static_cast<size_t>(params->rows) * 16;
  return VORTA_OK;
}

vorta_status vorta_linear_enqueue(const vorta_linear_params* params, void* stream) {
  std::printf("sizes right: %d\n", params->struct_size == sizeof(*params));
  std::printf(
      "params: dtype=%d precision=%d activation=%d in_features=%d out_features=%d candidate=%d rows=%lld "
      "second_features=%d\n",
      params->dtype, params->precision, params->activation, params->in_features, params->out_features,
      params->candidate, static_cast<long long>(params->rows), params->second_features);
  std::printf("pointers: %p %p %p %p %p %p\n", params->input, static_cast<const void*>(params->input_scale),
              params->weight, static_cast<const void*>(params->weight_scale), params->bias, params->output);
  std::printf("second: %p %lld\n", params->second_input, static_cast<long long>(params->second_stride));
  std::printf("row strides: %lld,%lld\n", static_cast<long long>(params->input_stride),
              static_cast<long long>(params->output_stride));
  std::printf("workspace: %p %zu\nstream: %p\n", params->workspace, params->workspace_bytes, stream);
  return VORTA_OK;
}

vorta_status vorta_quantize_validate(const vorta_quantize_params*) { return VORTA_OK; }

vorta_status vorta_quantize_enqueue(const vorta_quantize_params* params, void* stream) {
  std::printf("sizes right: %d\n", params->struct_size == sizeof(*params));
  std::printf("params: dtype=%d features=%d rows=%lld second_features=%d\n", params->dtype, params->features,
              static_cast<long long>(params->rows), params->second_features);
  std::printf("second: %p %lld\n", params->second_input, static_cast<long long>(params->second_stride));
  std::printf("pointers: %p %p %p\n", params->input, params->quantized, static_cast<void*>(params->quantized_scale));
  std::printf("row strides: %lld\nstream: %p\n", static_cast<long long>(params->input_stride), stream);
  return VORTA_OK;
}

const char* vorta_last_error(void) { return ""; }
const char* vorta_version(void) { return "recording"; }
const char* vorta_abi_hash(void) { return "recording"; }
const char* vorta_cuda_architectures(void) { return "none"; }

// The environment says why products are slow.
const char* vorta_linear_backend(int32_t /*precision*/, const char** reason) {
  const char* given = std::getenv("RECORDED_REASON");
  *reason = given != nullptr ? given : "";
  return given != nullptr ? "sm80" : "cublaslt 13.1.0";
}

const char* vorta_cublaslt_path() { return "/cuda/libcublasLt.so.13"; }
