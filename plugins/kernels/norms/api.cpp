// SPDX-License-Identifier: Apache-2.0
//
// The functions of block_operators.h: validate, put into the form of the kernels, launch.
#include "cuda_error.h"
#include "norms/calls.h"
#include "norms/validate.h"

namespace vorta::norms {
namespace {

RowTensor row_tensor(const void* data, const int64_t (&stride)[2]) {
  return {static_cast<uint4*>(const_cast<void*>(data)), stride[0] / kVector, stride[1] / kVector};
}

template <class Params>
RowShape row_shape(const Params& p, int32_t features) {
  return {p.batch * p.token_count, p.token_count, features / kVector, p.epsilon};
}

template <class Params>
HeadNormCall head_norm_call(const Params& p) {
  HeadNormCall call{};
  call.shape = row_shape(p, p.heads * p.head_dim);
  call.head_vectors = p.head_dim / kVector;
  call.per_head = p.weight_length == p.head_dim;
  call.weight_float32 = p.weight_float32 != 0;
  return call;
}

HeadNormCall make_call(const vorta_head_norm_params& p) {
  HeadNormCall call = head_norm_call(p);
  call.tensors[0] = {row_tensor(p.tokens, p.tokens_stride), row_tensor(p.output, p.output_stride), p.weight};
  return call;
}

HeadNormCall make_call(const vorta_qk_norm_rotary_params& p) {
  HeadNormCall call = head_norm_call(p);
  call.cos = p.cos;
  call.sin = p.sin;
  call.tensors[0] = {row_tensor(p.query, p.query_stride), row_tensor(p.query_output, p.query_output_stride),
                     p.query_weight};
  call.tensors[1] = {row_tensor(p.key, p.key_stride), row_tensor(p.key_output, p.key_output_stride), p.key_weight};
  return call;
}

template <class Params>
NormModulateCall norm_modulate_call(const Params& p) {
  NormModulateCall call{};
  call.shape = row_shape(p, p.features);
  call.first_tokens = p.first_tokens;
  call.scale = p.scale;
  call.shift = p.shift;
  call.output = row_tensor(p.output, p.output_stride);
  call.quantized = static_cast<uint2*>(p.quantized);
  call.quantized_scale = p.quantized_scale;
  return call;
}

NormModulateCall make_call(const vorta_norm_modulate_params& p) {
  NormModulateCall call = norm_modulate_call(p);
  call.input = row_tensor(p.tokens, p.tokens_stride);
  return call;
}

NormModulateCall make_call(const vorta_residual_norm_modulate_params& p) {
  NormModulateCall call = norm_modulate_call(p);
  call.input = row_tensor(p.residual, p.residual_stride);
  call.update = row_tensor(p.update, p.update_stride);
  call.gate = p.gate;
  call.residual_output = row_tensor(p.residual_output, p.residual_output_stride);
  return call;
}

cudaError_t launch(const HeadNormCall& call, vorta_dtype dtype, cudaStream_t stream) {
  return launch_head_norm(call, dtype, stream);
}

cudaError_t launch(const NormModulateCall& call, vorta_dtype dtype, cudaStream_t stream) {
  return launch_norm_modulate(call, dtype, stream);
}

template <class Params>
vorta_status enqueue(const char* name, const Params* params, void* stream) {
  if (vorta_status status = validate_sizes(params)) return status;
  if (is_empty(*params)) return VORTA_OK;
  if (vorta_status status = validate_tensors(*params)) return status;
  const auto dtype = static_cast<vorta_dtype>(params->dtype);
  const cudaError_t error = launch(make_call(*params), dtype, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? VORTA_OK : report(name, error);
}

}  // namespace
}  // namespace vorta::norms

#define VORTA_DEFINE_OPERATOR(name)                                                        \
  vorta_status vorta_##name##_validate(const vorta_##name##_params* params) {              \
    return vorta::norms::validate_sizes(params);                                           \
  }                                                                                        \
  vorta_status vorta_##name##_enqueue(const vorta_##name##_params* params, void* stream) { \
    return vorta::norms::enqueue(#name, params, stream);                                   \
  }

VORTA_DEFINE_OPERATOR(head_norm)
VORTA_DEFINE_OPERATOR(qk_norm_rotary)
VORTA_DEFINE_OPERATOR(norm_modulate)
VORTA_DEFINE_OPERATOR(residual_norm_modulate)
