// SPDX-License-Identifier: Apache-2.0
#include <cmath>

#include "last_error.h"
#include "validate.h"

namespace vorta {
namespace {

vorta_status check_positive(const char* name, const int32_t (&value)[3], const char* remedy) {
  if (value[0] >= 1 && value[1] >= 1 && value[2] >= 1) return VORTA_OK;
  return fail(VORTA_INVALID_ARGUMENT, "%s (%d, %d, %d): every entry must be at least 1; %s", name, value[0], value[1],
              value[2], remedy);
}

/// Checks the fields that the structs of both attention operators have under the same names.
template <class Struct>
vorta_status check_common(const Struct& p) {
  if (p.dtype != VORTA_FLOAT16 && p.dtype != VORTA_BFLOAT16) {
    return fail(VORTA_INVALID_ARGUMENT, "dtype %d: must be %d (float16) or %d (bfloat16); cast the tensors to one",
                p.dtype, VORTA_FLOAT16, VORTA_BFLOAT16);
  }
  if (p.batch < 0 || p.batch > kMaxGridYZ) {
    return fail(VORTA_INVALID_ARGUMENT, "batch %d: must be 0 to %d; split the batch", p.batch, kMaxGridYZ);
  }
  if (p.heads < 0 || p.heads > kMaxGridYZ) {
    return fail(VORTA_INVALID_ARGUMENT, "heads %d: must be 0 to %d; split the heads", p.heads, kMaxGridYZ);
  }
  if (1LL * p.batch * p.heads > kMaxHeads) {
    return fail(VORTA_INVALID_ARGUMENT, "batch %d and heads %d: at most %d heads in all; split the batch", p.batch,
                p.heads, kMaxHeads);
  }
  if (p.head_dim < 8 || p.head_dim > kMaxHeadDim || p.head_dim % 8 != 0) {
    const int rounded = p.head_dim < 8 ? 8 : (p.head_dim > kMaxHeadDim ? kMaxHeadDim : (p.head_dim + 7) / 8 * 8);
    return fail(VORTA_INVALID_ARGUMENT, "head_dim %d: must be a multiple of 8, at most %d; pad with zeros to %d",
                p.head_dim, kMaxHeadDim, rounded);
  }
  if (!std::isfinite(p.scale) || p.scale < 0.0f) {
    return fail(VORTA_INVALID_ARGUMENT, "scale %g: must be finite and positive; use 0 for 1/sqrt(head_dim)",
                static_cast<double>(p.scale));
  }
  if (p.reserved != 0) {
    return fail(VORTA_INVALID_ARGUMENT, "reserved %d: must be 0; set the whole struct to zero before its fields",
                p.reserved);
  }
  return VORTA_OK;
}

vorta_status check_sizes(const vorta_routed_attention_problem& p) {
  if (vorta_status status = check_common(p)) return status;
  if (p.text_tokens < 0) {
    return fail(VORTA_INVALID_ARGUMENT, "text_tokens %d: must not be negative; use 0 for attention without text",
                p.text_tokens);
  }
  if (p.attention_precision != VORTA_PRECISION_SAME && p.attention_precision != VORTA_PRECISION_FP8) {
    return fail(VORTA_INVALID_ARGUMENT,
                "attention_precision %d: must be %d (same as the inputs) or %d (fp8); use 0 unless fp8 is wanted",
                p.attention_precision, VORTA_PRECISION_SAME, VORTA_PRECISION_FP8);
  }
  return VORTA_OK;
}

vorta_status check_coreset(const vorta_routed_attention_problem& p) {
  if (vorta_status status = check_positive("bucket", p.bucket, "use e.g. (2, 3, 2)")) return status;
  // Entry by entry: the product of any three may pass 64 bits.
  const long long plane_tokens = 1LL * p.bucket[1] * p.bucket[2];
  if (plane_tokens > kMaxBucketTokens || plane_tokens * p.bucket[0] > kMaxBucketTokens) {
    return fail(VORTA_INVALID_ARGUMENT,
                "bucket (%d, %d, %d): must have at most %d tokens; use smaller buckets, e.g. (2, 3, 2)", p.bucket[0],
                p.bucket[1], p.bucket[2], kMaxBucketTokens);
  }
  const long long bucket_tokens = plane_tokens * p.bucket[0];
  if (p.keep < 1 || p.keep > bucket_tokens) {
    return fail(VORTA_INVALID_ARGUMENT,
                "keep %d: must be 1 to %lld, the tokens of bucket (%d, %d, %d), its centre included; use e.g. %lld",
                p.keep, bucket_tokens, p.bucket[0], p.bucket[1], p.bucket[2], (bucket_tokens + 1) / 2);
  }
  if (p.coreset_keys != VORTA_KEYS_BY_QUERY && p.coreset_keys != VORTA_KEYS_BY_KEY) {
    return fail(VORTA_INVALID_ARGUMENT, "coreset_keys %d: must be %d (by query) or %d (by key)", p.coreset_keys,
                VORTA_KEYS_BY_QUERY, VORTA_KEYS_BY_KEY);
  }
  return VORTA_OK;
}

vorta_status check_sliding(const vorta_routed_attention_problem& p) {
  if (vorta_status status = check_positive("tile", p.tile, "use e.g. (5, 9, 8)")) return status;
  if (vorta_status status = check_positive("window", p.window, "use e.g. (3, 3, 3)")) return status;
  if (p.window[0] % 2 == 0 || p.window[1] % 2 == 0 || p.window[2] % 2 == 0) {
    return fail(VORTA_INVALID_ARGUMENT,
                "window (%d, %d, %d): every entry must be odd, so that the window has a centre tile; use (%d, %d, %d)",
                p.window[0], p.window[1], p.window[2], p.window[0] | 1, p.window[1] | 1, p.window[2] | 1);
  }
  return VORTA_OK;
}

}  // namespace

vorta_status validate_problem(const vorta_routed_attention_problem* problem) noexcept {
  if (problem == nullptr) {
    return fail(VORTA_INVALID_ARGUMENT, "problem NULL: must point to a vorta_routed_attention_problem; pass one");
  }
  const vorta_routed_attention_problem& p = *problem;
  if (p.struct_size != sizeof(p)) {
    return fail(VORTA_INVALID_ARGUMENT,
                "problem.struct_size %zu: must be %zu in this library (API version %d); set it to sizeof(*problem) and "
                "compile against the same header",
                p.struct_size, sizeof(p), VORTA_API_VERSION);
  }
  if (vorta_status status = check_sizes(p)) return status;
  if (vorta_status status = check_positive("grid", p.grid, "give the token grid (frames, height, width)"))
    return status;
  // Each factor is below 2^31, so the product is compared factor by factor to stay inside 64 bits.
  const long long plane_tokens = 1LL * p.grid[1] * p.grid[2];
  if (plane_tokens > kMaxTokens || plane_tokens * p.grid[0] + p.text_tokens > kMaxTokens) {
    return fail(VORTA_INVALID_ARGUMENT,
                "grid (%d, %d, %d) and text_tokens %d: at most %lld tokens are supported; use a smaller video",
                p.grid[0], p.grid[1], p.grid[2], p.text_tokens, kMaxTokens);
  }
  if (vorta_status status = check_sliding(p)) return status;
  return check_coreset(p);
}

vorta_status validate_call(const vorta_cross_attention_params* call) noexcept {
  if (call == nullptr) {
    return fail(VORTA_INVALID_ARGUMENT, "params NULL: must point to a vorta_cross_attention_params; pass one");
  }
  const vorta_cross_attention_params& c = *call;
  if (c.struct_size != sizeof(c)) {
    return fail(VORTA_INVALID_ARGUMENT,
                "params.struct_size %zu: must be %zu in this library (API version %d); set it to sizeof(*params) and "
                "compile against the same header",
                c.struct_size, sizeof(c), VORTA_API_VERSION);
  }
  if (vorta_status status = check_common(c)) return status;
  if (c.query_tokens < 0 || c.query_tokens > kMaxTokens) {
    return fail(VORTA_INVALID_ARGUMENT, "query_tokens %d: must be 0 to %lld; split the queries", c.query_tokens,
                kMaxTokens);
  }
  if (c.key_tokens < 1 || c.key_tokens > kMaxTokens) {
    return fail(VORTA_INVALID_ARGUMENT,
                "key_tokens %d: must be 1 to %lld, since a softmax over nothing has no value; give at least one key",
                c.key_tokens, kMaxTokens);
  }
  return VORTA_OK;
}

}  // namespace vorta
