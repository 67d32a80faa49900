// SPDX-License-Identifier: Apache-2.0
//
// NormModulate and ResidualNormModulate: a gated residual, a layer norm and a modulation in one pass over memory, with
// the 8-bit copy of the result where it is wanted.
#include "kernel_launch.h"
#include "rows.cuh"

namespace vorta::norms {
namespace {

/// Rows that a block holds: two share a modulation and the barriers; with the update in flight beside it one is as
/// fast.
template <bool kResidual>
inline constexpr int kRowsOf = kResidual ? 1 : 2;

/// The row of a modulation that a token takes.
struct ModulationRow {
  int32_t batch;
  bool second;

  __device__ __forceinline__ Floats load(const vorta_modulation& modulation, int vector) const {
    const int64_t row = batch * modulation.batch_stride + (second ? modulation.row_stride : 0);
    return load_floats(modulation.data + row + vector * kVector);
  }
  __device__ __forceinline__ bool operator!=(const ModulationRow& other) const {
    return batch != other.batch || second != other.second;
  }
};

template <class Element, bool kResidual, bool kQuantized>
__global__ void __launch_bounds__(kMaxThreads) norm_modulate_kernel(const __grid_constant__ NormModulateCall call) {
  constexpr int kRows = kRowsOf<kResidual>;
  __shared__ ReductionRoom<kRows> rooms[3];
  const RowShape& shape = call.shape;
  Place places[kRows];
  locate_rows(shape, places);
  ModulationRow modulation[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) modulation[r] = {places[r].batch, places[r].token >= call.first_tokens};
  // Rows that do not exist take the modulation of those before, which is in memory.
#pragma unroll
  for (int r = 1; r < kRows; ++r) {
    if (!places[r].exists) modulation[r] = modulation[r - 1];
  }

  uint4 words[kRows][kVectors];
  load_rows(shape, places, call.input, words);
  if constexpr (kResidual) {
    uint4 updates[kRows][kVectors];
    load_rows(shape, places, call.update, updates);
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const int vector = v * blockDim.x + threadIdx.x;
      if (vector >= shape.vectors) continue;
      Floats gate{};
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r == 0 || modulation[r] != modulation[r - 1]) gate = modulation[r].load(call.gate, vector);
        Floats x = unpack<Element>(words[r][v]);
        const Floats update = unpack<Element>(updates[r][v]);
#pragma unroll
        for (int i = 0; i < kVector; ++i) x.at[i] = fmaf(update.at[i], gate.at[i], x.at[i]);
        words[r][v] = pack<Element>(x);
        if (places[r].exists) {
          call.residual_output.data[places[r].offset(call.residual_output) + vector] = words[r][v];
        }
      }
    }
  }

  float mean[kRows], deviation[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    mean[r] = 0.0f;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      const Floats x = unpack<Element>(words[r][v]);  // zeros beyond the row
#pragma unroll
      for (int i = 0; i < kVector; ++i) mean[r] += x.at[i];
    }
  }
  reduce_block<Sum>(mean, rooms[0]);
  const float one_by_features = 1.0f / (shape.vectors * kVector);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    mean[r] *= one_by_features;
    deviation[r] = 0.0f;
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      if (v * blockDim.x + threadIdx.x >= shape.vectors) continue;
      const Floats x = unpack<Element>(words[r][v]);
#pragma unroll
      for (int i = 0; i < kVector; ++i) deviation[r] = fmaf(x.at[i] - mean[r], x.at[i] - mean[r], deviation[r]);
    }
  }
  reduce_block<Sum>(deviation, rooms[1]);

  float largest[kRows] = {};
#pragma unroll
  for (int r = 0; r < kRows; ++r) deviation[r] = rsqrtf(fmaf(deviation[r], one_by_features, shape.epsilon));
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int vector = v * blockDim.x + threadIdx.x;
    if (vector >= shape.vectors) continue;
    Floats scale{}, shift{};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r == 0 || modulation[r] != modulation[r - 1]) {
        scale = modulation[r].load(call.scale, vector);
        shift = modulation[r].load(call.shift, vector);
      }
      Floats x = unpack<Element>(words[r][v]);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        x.at[i] = fmaf((x.at[i] - mean[r]) * deviation[r], scale.at[i], shift.at[i]);
      }
      const uint4 rounded = pack<Element>(x);
      if (places[r].exists && (!kQuantized || call.output.data != nullptr)) {
        call.output.data[places[r].offset(call.output) + vector] = rounded;
      }
      if constexpr (kQuantized) {
        words[r][v] = rounded;
        const Floats y = unpack<Element>(rounded);
#pragma unroll
        for (int i = 0; i < kVector; ++i) largest[r] = fmaxf(largest[r], fabsf(y.at[i]));
      }
    }
  }
  if constexpr (kQuantized) {
    reduce_block<Largest>(largest, rooms[2]);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (!places[r].exists) continue;
      const int64_t row = int64_t{blockIdx.x} * kRows + r;
      const float scale = linear::e4m3_scale(largest[r]);
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int vector = v * blockDim.x + threadIdx.x;
        if (vector >= shape.vectors) continue;
        call.quantized[row * shape.vectors + vector] = pack_e4m3(unpack<Element>(words[r][v]), scale);
      }
      if (threadIdx.x == 0) call.quantized_scale[row] = scale;
    }
  }
}

template <class Element, bool kResidual, bool kQuantized>
cudaError_t launch(const NormModulateCall& call, cudaStream_t stream) {
  return launch_rows<kRowsOf<kResidual>>(norm_modulate_kernel<Element, kResidual, kQuantized>, call, stream);
}

template <class Element>
cudaError_t launch(const NormModulateCall& call, cudaStream_t stream) {
  const bool quantized = call.quantized != nullptr;
  if (call.update.data != nullptr) {
    return quantized ? launch<Element, true, true>(call, stream) : launch<Element, true, false>(call, stream);
  }
  return quantized ? launch<Element, false, true>(call, stream) : launch<Element, false, false>(call, stream);
}

}  // namespace

cudaError_t launch_norm_modulate(const NormModulateCall& call, vorta_dtype dtype, cudaStream_t stream) {
  return dtype == VORTA_FLOAT16 ? launch<__half>(call, stream) : launch<__nv_bfloat16>(call, stream);
}

}  // namespace vorta::norms
