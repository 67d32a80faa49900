// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "last_error.h"
#include "norms/calls.h"
#include "norms/validate.h"
#include "tensor_checks.h"

namespace vorta::norms {
namespace {

constexpr int kFloatVector = 4;  // float32 in 16 bytes
constexpr int kAlignment = 16;
constexpr int kMaxTensors = 8;

/// A tensor of a call that has been checked.
struct Checked {
  const char* name;
  const void* pointer;
  int64_t stride[2];
  Extent extent;
  Access access;
};

/// Checks the tensors of one call and remembers where they lie.
class TensorList {
 public:
  TensorList(int32_t batch, int32_t tokens, int32_t features) : size_{batch, tokens, 1}, features_(features) {}

  /// A tensor [B, X, E] of 16 bits.
  vorta_status add(const char* name, const void* pointer, const int64_t (&stride)[2], Access access) {
    const int64_t strides[3] = {stride[0], stride[1], 0};
    Checked tensor{name, pointer, {stride[0], stride[1]}, {}, access};
    if (vorta_status status =
            check_tensor(name, "[B, X, E]", pointer, strides, size_, features_, access, &tensor.extent)) {
      return status;
    }
    return keep(tensor);
  }

  /// Any other output, contiguous.
  vorta_status add_contiguous_output(const char* name, const char* shape, const void* pointer, int64_t bytes) {
    if (vorta_status status = check_aligned(name, shape, pointer)) return status;
    const auto begin = reinterpret_cast<uintptr_t>(pointer);
    return keep({name, pointer, {-1, -1}, {begin, begin + static_cast<uintptr_t>(bytes), true}, Access::kWritten});
  }

  /// Any other input.
  static vorta_status check_aligned(const char* name, const char* shape, const void* pointer) {
    if (pointer != nullptr && is_aligned(pointer, kAlignment)) return VORTA_OK;
    return fail(VORTA_INVALID_ARGUMENT, "%s %p: must be a device pointer to %s, aligned to %d bytes; pass one", name,
                pointer, shape, kAlignment);
  }

  static vorta_status check_modulation(const char* name, const vorta_modulation& modulation) {
    if (vorta_status status = check_aligned(name, "float32 [B or 1, M, E]", modulation.data)) return status;
    for (int64_t stride : {modulation.batch_stride, modulation.row_stride}) {
      if (stride >= 0 && stride % kFloatVector == 0) continue;
      return fail(VORTA_INVALID_ARGUMENT,
                  "%s strides (%lld, %lld) of batch and row: must be multiples of %d elements (16 bytes), not "
                  "negative; make the tensor contiguous",
                  name, static_cast<long long>(modulation.batch_stride), static_cast<long long>(modulation.row_stride),
                  kFloatVector);
    }
    return VORTA_OK;
  }

  /// No output shares memory with another tensor, unless it takes exactly the place of an input.
  vorta_status check_apart() const {
    for (int i = 0; i < count_; ++i) {
      const Checked& output = tensors_[i];
      if (output.access != Access::kWritten) continue;
      for (int j = 0; j < count_; ++j) {
        const Checked& other = tensors_[j];
        if (j == i || (other.access == Access::kRead && in_place(output, other))) continue;
        if (output.pointer != other.pointer && !output.extent.overlaps(other.extent)) continue;
        return fail(VORTA_INVALID_ARGUMENT, "%s %p: must not share memory with %s, %s; pass memory of its own",
                    output.name, output.pointer, other.name,
                    other.access == Access::kRead ? "unless pointer and strides are the same" : "another output");
      }
    }
    return VORTA_OK;
  }

 private:
  vorta_status keep(const Checked& tensor) {
    tensors_[count_++] = tensor;
    return VORTA_OK;
  }

  bool in_place(const Checked& output, const Checked& input) const {
    if (output.pointer != input.pointer) return false;
    for (int axis = 0; axis < 2; ++axis) {
      if (size_[axis] > 1 && output.stride[axis] != input.stride[axis]) return false;
    }
    return true;
  }

  const int64_t size_[3];
  const int64_t features_;
  Checked tensors_[kMaxTensors];
  int count_ = 0;
};

/// The checks from the first to the first that fails.
template <class... Checks>
vorta_status all_of(const Checks&... checks) {
  vorta_status status = VORTA_OK;
  (void)(((status = checks()) == VORTA_OK) && ...);
  return status;
}

/// Checks the tensors that NormModulate and ResidualNormModulate have in common.
template <class Params>
vorta_status check_modulated(TensorList& tensors, const Params& p) {
  const int64_t rows = int64_t{p.batch} * p.token_count;
  return all_of([&] { return TensorList::check_modulation("scale", p.scale); },
                [&] { return TensorList::check_modulation("shift", p.shift); },
                [&] {
                  const bool unwanted = p.output == nullptr && p.quantized != nullptr;
                  return unwanted ? VORTA_OK : tensors.add("output", p.output, p.output_stride, Access::kWritten);
                },
                [&] {
                  if ((p.quantized == nullptr) == (p.quantized_scale == nullptr)) return VORTA_OK;
                  return fail(VORTA_INVALID_ARGUMENT,
                              "quantized %p and quantized_scale %p: must both be given or both be NULL; pass both",
                              p.quantized, static_cast<const void*>(p.quantized_scale));
                },
                [&] {
                  if (p.quantized == nullptr) return VORTA_OK;
                  return tensors.add_contiguous_output("quantized", "e4m3 [B, X, E]", p.quantized, rows * p.features);
                },
                [&] {
                  if (p.quantized == nullptr) return VORTA_OK;
                  return tensors.add_contiguous_output("quantized_scale", "float32 [B, X]", p.quantized_scale,
                                                       rows * static_cast<int64_t>(sizeof(float)));
                },
                [&] { return tensors.check_apart(); });
}

}  // namespace

vorta_status validate_tensors(const vorta_head_norm_params& p) noexcept {
  TensorList tensors(p.batch, p.token_count, features_of(p));
  return all_of([&] { return tensors.add("tokens", p.tokens, p.tokens_stride, Access::kRead); },
                [&] { return TensorList::check_aligned("weight", "[E] or [D]", p.weight); },
                [&] { return tensors.add("output", p.output, p.output_stride, Access::kWritten); },
                [&] { return tensors.check_apart(); });
}

vorta_status validate_tensors(const vorta_qk_norm_rotary_params& p) noexcept {
  TensorList tensors(p.batch, p.token_count, features_of(p));
  return all_of([&] { return tensors.add("query", p.query, p.query_stride, Access::kRead); },
                [&] { return tensors.add("key", p.key, p.key_stride, Access::kRead); },
                [&] { return TensorList::check_aligned("query_weight", "[E] or [D]", p.query_weight); },
                [&] { return TensorList::check_aligned("key_weight", "[E] or [D]", p.key_weight); },
                [&] { return TensorList::check_aligned("cos", "float32 [X, D/2]", p.cos); },
                [&] { return TensorList::check_aligned("sin", "float32 [X, D/2]", p.sin); },
                [&] { return tensors.add("query_output", p.query_output, p.query_output_stride, Access::kWritten); },
                [&] { return tensors.add("key_output", p.key_output, p.key_output_stride, Access::kWritten); },
                [&] { return tensors.check_apart(); });
}

vorta_status validate_tensors(const vorta_norm_modulate_params& p) noexcept {
  TensorList tensors(p.batch, p.token_count, p.features);
  return all_of([&] { return tensors.add("tokens", p.tokens, p.tokens_stride, Access::kRead); },
                [&] { return check_modulated(tensors, p); });
}

vorta_status validate_tensors(const vorta_residual_norm_modulate_params& p) noexcept {
  TensorList tensors(p.batch, p.token_count, p.features);
  return all_of(
      [&] { return tensors.add("residual", p.residual, p.residual_stride, Access::kRead); },
      [&] { return tensors.add("update", p.update, p.update_stride, Access::kRead); },
      [&] { return TensorList::check_modulation("gate", p.gate); },
      [&] { return tensors.add("residual_output", p.residual_output, p.residual_output_stride, Access::kWritten); },
      [&] { return check_modulated(tensors, p); });
}

}  // namespace vorta::norms
