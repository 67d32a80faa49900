// SPDX-License-Identifier: Apache-2.0
#include "linear/validate_linear.h"

#include <initializer_list>

#include "last_error.h"
#include "tensor_checks.h"

namespace vorta::linear {
namespace {

constexpr int kMaxFeatures = 1 << 20;
constexpr long long kMaxRows = (1LL << 31) - 1024;  // of a grid, and far from overflow with the features
constexpr int kMaxCandidate = 63;

vorta_status check_choice(const char* name, int value, const char* choices) {
  if (value == 0 || value == 1) return VORTA_OK;
  return fail(VORTA_INVALID_ARGUMENT, "%s %d: must be %s; pass one of them", name, value, choices);
}

vorta_status check_features(const char* name, int value, int multiple, bool fp8) {
  if (value >= multiple && value % multiple == 0 && value <= kMaxFeatures) return VORTA_OK;
  return fail(VORTA_INVALID_ARGUMENT,
              "%s %d: must be a multiple of %d (16 bytes), at least that and at most %d%s; pad weights and input with "
              "zeros, or leave this layer to the framework",
              name, value, multiple, kMaxFeatures, fp8 ? " with fp8 products" : "");
}

/// Checks the fields that both structs begin with, and the number of rows.
template <class Params>
vorta_status check_common(const Params* params, const char* type) {
  if (params == nullptr) {
    return fail(VORTA_INVALID_ARGUMENT, "params NULL: must point to a %s; pass one", type);
  }
  if (params->struct_size != sizeof(*params)) {
    return fail(VORTA_INVALID_ARGUMENT,
                "params.struct_size %zu: must be %zu in this library (API version %d); set it to sizeof(*params) and "
                "compile against the same header",
                params->struct_size, sizeof(*params), VORTA_API_VERSION);
  }
  if (vorta_status status = check_choice("dtype", params->dtype, "0 (float16) or 1 (bfloat16)")) return status;
  if (params->rows < 0 || params->rows > kMaxRows) {
    return fail(VORTA_INVALID_ARGUMENT, "rows %lld: must be 0 to %lld; split the input",
                static_cast<long long>(params->rows), kMaxRows);
  }
  return VORTA_OK;
}

struct Matrix {
  const char *name, *shape;
  const void* pointer;
  int64_t rows, stride;
  int columns, element_bytes;
};

vorta_status check_matrix(const Matrix& m, Extent* extent) {
  if (m.pointer == nullptr || !is_aligned(m.pointer, 16)) {
    return fail(VORTA_INVALID_ARGUMENT, "%s %p: must be a device pointer to %s, aligned to 16 bytes; pass one", m.name,
                m.pointer, m.shape);
  }
  const int multiple = 16 / m.element_bytes;
  if (m.rows > 1 && (m.stride < m.columns || m.stride % multiple != 0 || m.stride > (int64_t{1} << 56) / m.rows)) {
    return fail(VORTA_INVALID_ARGUMENT,
                "%s_stride %lld: must be a multiple of %d elements (16 bytes) and at least the %d columns of a row; "
                "give the elements from one row to the next, or make the tensor contiguous",
                m.name, static_cast<long long>(m.stride), multiple, m.columns);
  }
  const int64_t elements = (m.rows - 1) * m.stride + m.columns;
  extent->begin = reinterpret_cast<uintptr_t>(m.pointer);
  extent->end = extent->begin + static_cast<uintptr_t>(elements) * static_cast<uintptr_t>(m.element_bytes);
  extent->dense = m.rows == 1 || m.stride == m.columns;
  return VORTA_OK;
}

/// Checks sizes of the second input of either struct; `all` is the number of both inputs' features, `name` its name.
template <class Params>
vorta_status check_second(const Params& p, int all, const char* name) {
  const int own = p.second_features;
  if (own == 0 || (own >= 8 && own % 8 == 0 && own < all && p.reserved == 0)) return VORTA_OK;
  return fail(VORTA_INVALID_ARGUMENT,
              "second_features %d of %s %d, reserved %d: must be a multiple of 8 (16 bytes) below %s, with reserved 0; "
              "pass 0 without a second input",
              own, name, all, p.reserved, name);
}

template <class Params>
vorta_status check_second_tensor(const Params& p, Extent* extent) {
  if ((p.second_input != nullptr) != (p.second_features > 0)) {
    return fail(VORTA_INVALID_ARGUMENT,
                "second_input %p with second_features %d: must be NULL and 0, or a device pointer and its features; "
                "pass both or none",
                p.second_input, p.second_features);
  }
  if (p.second_input == nullptr) return VORTA_OK;
  return check_matrix({"second", "[R, K2]", p.second_input, p.rows, p.second_stride, p.second_features, 2}, extent);
}

}  // namespace

vorta_status validate(const vorta_linear_params* params) noexcept {
  if (vorta_status status = check_common(params, "vorta_linear_params")) return status;
  const vorta_linear_params& p = *params;
  if (vorta_status status = check_choice("precision", p.precision, "0 (same) or 1 (fp8)")) return status;
  if (vorta_status status = check_choice("activation", p.activation, "0 (none) or 1 (gelu_tanh)")) return status;
  const bool fp8 = p.precision == VORTA_LINEAR_FP8;
  if (vorta_status status = check_features("in_features", p.in_features, fp8 ? 16 : 8, fp8)) return status;
  if (vorta_status status = check_features("out_features", p.out_features, fp8 ? 16 : 8, fp8)) return status;
  if (vorta_status status = check_second(p, p.in_features, "in_features")) return status;
  if (fp8 && p.second_features != 0) {
    return fail(VORTA_INVALID_ARGUMENT,
                "second_features %d with precision 1 (fp8): must be 0; quantise both inputs into one "
                "(vorta_quantize_params), or pass precision 0 (same)",
                p.second_features);
  }
  if (p.candidate < -1 || p.candidate > kMaxCandidate) {
    return fail(VORTA_INVALID_ARGUMENT,
                "candidate %d: must be -1 (the library's own kernel) to %d; pass 0 for cuBLASLt's first choice",
                p.candidate, kMaxCandidate);
  }
  return VORTA_OK;
}

vorta_status validate_tensors(const vorta_linear_params& p, size_t workspace_bytes) noexcept {
  const bool fp8 = p.precision == VORTA_LINEAR_FP8;
  if ((p.input_scale != nullptr) != fp8 || (p.weight_scale != nullptr) != fp8) {
    return fail(VORTA_INVALID_ARGUMENT,
                "input_scale %p and weight_scale %p: must be device pointers to float32 [R] and [O] with precision 1 "
                "(fp8), NULL with 0 (same), which has no scales; pass both or none",
                static_cast<const void*>(p.input_scale), static_cast<const void*>(p.weight_scale));
  }
  Extent input{}, weight{}, output{}, second{};
  const Matrix matrices[] = {
      {"input", fp8 ? "[R, K] e4m3" : "[R, K]", p.input, p.rows, p.input_stride, p.in_features - p.second_features,
       fp8 ? 1 : 2},
      {"weight", fp8 ? "[O, K] e4m3" : "[O, K]", p.weight, p.out_features, p.in_features, p.in_features, fp8 ? 1 : 2},
      {"output", "[R, O]", p.output, p.rows, p.output_stride, p.out_features, 2},
  };
  Extent* extents[] = {&input, &weight, &output};
  for (int i = 0; i < 3; ++i) {
    if (vorta_status status = check_matrix(matrices[i], extents[i])) return status;
  }
  if (vorta_status status = check_second_tensor(p, &second)) return status;
  for (const void* vector :
       {p.bias, static_cast<const void*>(p.input_scale), static_cast<const void*>(p.weight_scale)}) {
    if (is_aligned(vector, 16)) continue;  // NULL is aligned, too
    return fail(VORTA_INVALID_ARGUMENT,
                "bias, input_scale or weight_scale %p: must be aligned to 16 bytes; copy it to a fresh allocation",
                vector);
  }
  if (p.workspace == nullptr || !is_aligned(p.workspace, 256)) {
    return fail(VORTA_INVALID_ARGUMENT, "workspace %p: must be a device pointer aligned to 256 bytes; pass one",
                p.workspace);
  }
  if (p.workspace_bytes < workspace_bytes) {
    return fail(VORTA_INVALID_ARGUMENT,
                "workspace_bytes %zu: this call needs %zu; allocate what vorta_linear_workspace_size says",
                p.workspace_bytes, workspace_bytes);
  }
  const auto workspace = reinterpret_cast<uintptr_t>(p.workspace);
  const Extent scratch{workspace, workspace + workspace_bytes, true};
  if (output.overlaps(input) || output.overlaps(weight) || output.overlaps(second)) {
    return fail(VORTA_INVALID_ARGUMENT, "output %p: must not share memory with input or weight; pass memory of its own",
                p.output);
  }
  if (scratch.overlaps(input) || scratch.overlaps(weight) || scratch.overlaps(output) || scratch.overlaps(second)) {
    return fail(VORTA_INVALID_ARGUMENT,
                "workspace %p: must not share memory with input, weight or output; pass memory of its own",
                p.workspace);
  }
  return VORTA_OK;
}

vorta_status validate(const vorta_quantize_params* params) noexcept {
  if (vorta_status status = check_common(params, "vorta_quantize_params")) return status;
  if (vorta_status status = check_features("features", params->features, 16, true)) return status;
  return check_second(*params, params->features, "features");
}

vorta_status validate_tensors(const vorta_quantize_params& p) noexcept {
  Extent input{}, quantized{}, second{};
  if (vorta_status status = check_matrix(
          {"input", "[R, K]", p.input, p.rows, p.input_stride, p.features - p.second_features, 2}, &input)) {
    return status;
  }
  if (vorta_status status = check_second_tensor(p, &second)) return status;
  if (vorta_status status =
          check_matrix({"quantized", "[R, K] e4m3", p.quantized, p.rows, p.features, p.features, 1}, &quantized)) {
    return status;
  }
  if (p.quantized_scale == nullptr || !is_aligned(p.quantized_scale, 16)) {
    return fail(VORTA_INVALID_ARGUMENT,
                "quantized_scale %p: must be a device pointer to float32 [R], aligned to 16 bytes; pass one",
                static_cast<const void*>(p.quantized_scale));
  }
  const auto begin = reinterpret_cast<uintptr_t>(p.quantized_scale);
  const Extent scale{begin, begin + static_cast<uintptr_t>(p.rows) * sizeof(float), true};
  if (quantized.overlaps(input) || scale.overlaps(input) || scale.overlaps(quantized) || quantized.overlaps(second) ||
      scale.overlaps(second)) {
    return fail(VORTA_INVALID_ARGUMENT,
                "quantized %p and quantized_scale %p: must share no memory with the input or each other; pass memory "
                "of their own",
                p.quantized, static_cast<const void*>(p.quantized_scale));
  }
  return VORTA_OK;
}

}  // namespace vorta::linear
