// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstdint>

#include "last_error.h"
#include "norms/calls.h"
#include "norms/validate.h"

namespace vorta::norms {
namespace {

constexpr int kMaxHeadDim = 256;                       // 32 vectors, one to a lane of a warp
constexpr int64_t kMaxRows = (int64_t{1} << 31) - 64;  // they are counted in int32, a few beyond the last
constexpr int kQuantizedFeatures = 16;                 // of which features are a multiple: 16 bytes of e4m3

/// Checks the fields that all structs begin with.
template <class Params>
vorta_status check_common(const Params* params) {
  if (params == nullptr) {
    return fail(VORTA_INVALID_ARGUMENT, "params NULL: must point to the operator's struct; pass one");
  }
  const Params& p = *params;
  if (p.struct_size != sizeof(p)) {
    return fail(
        VORTA_INVALID_ARGUMENT,
        "params.struct_size %zu: must be %zu in this library; set it to sizeof(*params) and compile against the "
        "same header",
        p.struct_size, sizeof(p));
  }
  if (p.dtype != VORTA_FLOAT16 && p.dtype != VORTA_BFLOAT16) {
    return fail(VORTA_INVALID_ARGUMENT, "dtype %d: must be %d (float16) or %d (bfloat16); cast the tensors to one",
                p.dtype, VORTA_FLOAT16, VORTA_BFLOAT16);
  }
  if (p.batch < 0 || p.token_count < 0) {
    return fail(VORTA_INVALID_ARGUMENT, "batch %d and token_count %d: must not be negative; pass the tensors' sizes",
                p.batch, p.token_count);
  }
  if (int64_t{p.batch} * p.token_count > kMaxRows) {
    return fail(VORTA_INVALID_ARGUMENT, "batch %d and token_count %d: at most %lld tokens in all; split the batch",
                p.batch, p.token_count, static_cast<long long>(kMaxRows));
  }
  if (!std::isfinite(p.epsilon) || p.epsilon < 0.0f) {
    return fail(VORTA_INVALID_ARGUMENT, "epsilon %g: must be finite and not negative; pass the norm's epsilon",
                static_cast<double>(p.epsilon));
  }
  return VORTA_OK;
}

template <class Params>
vorta_status check_heads(const Params* params) {
  if (vorta_status status = check_common(params)) return status;
  const Params& p = *params;
  if (p.weight_float32 != 0 && p.weight_float32 != 1) {
    return fail(VORTA_INVALID_ARGUMENT, "weight_float32 %d: must be 1 (float32) or 0 (the type of the tokens)",
                p.weight_float32);
  }
  if (p.head_dim < kVector || p.head_dim > kMaxHeadDim || p.head_dim % kVector != 0) {
    return fail(VORTA_INVALID_ARGUMENT,
                "head_dim %d: must be a multiple of %d, at most %d; compute this norm with torch's operators",
                p.head_dim, kVector, kMaxHeadDim);
  }
  if (p.heads < 0 || p.heads > kMaxFeatures / p.head_dim) {
    return fail(VORTA_INVALID_ARGUMENT,
                "heads %d of head_dim %d: must be 0 to %d, since a token has at most %d features; compute this norm "
                "with torch's operators",
                p.heads, p.head_dim, kMaxFeatures / p.head_dim, kMaxFeatures);
  }
  if (p.weight_length != p.head_dim && p.weight_length != p.heads * p.head_dim) {
    return fail(VORTA_INVALID_ARGUMENT,
                "weight_length %d: must be %d (one norm over all heads) or %d (one for each head); pass a weight of "
                "such a length",
                p.weight_length, p.heads * p.head_dim, p.head_dim);
  }
  return VORTA_OK;
}

template <class Params>
vorta_status check_modulated(const Params* params) {
  if (vorta_status status = check_common(params)) return status;
  const Params& p = *params;
  const bool quantized = p.quantized != nullptr;
  const int unit = quantized ? kQuantizedFeatures : kVector;
  if (p.features < 0 || p.features > kMaxFeatures || p.features % unit != 0) {
    return fail(VORTA_INVALID_ARGUMENT,
                "features %d: must be a multiple of %d%s, at most %d; compute this norm with torch's operators",
                p.features, unit, quantized ? " where `quantized` is wanted" : "", kMaxFeatures);
  }
  if (p.first_tokens < 0) {
    return fail(VORTA_INVALID_ARGUMENT,
                "first_tokens %d: must not be negative; use 0 where all tokens have the same modulation",
                p.first_tokens);
  }
  return VORTA_OK;
}

}  // namespace

vorta_status validate_sizes(const vorta_head_norm_params* params) noexcept { return check_heads(params); }
vorta_status validate_sizes(const vorta_qk_norm_rotary_params* params) noexcept { return check_heads(params); }
vorta_status validate_sizes(const vorta_norm_modulate_params* params) noexcept { return check_modulated(params); }
vorta_status validate_sizes(const vorta_residual_norm_modulate_params* params) noexcept {
  return check_modulated(params);
}

}  // namespace vorta::norms
