// SPDX-License-Identifier: Apache-2.0
#include "sm90_linear/variants.h"

#include <cstdlib>
#include <cstring>

#ifndef VORTA_WITHOUT_SM90

namespace vorta::sm90_linear {
namespace {

struct Instance {
  bool fp8;
  vorta_dtype dtype;
  int tile, epilogue;
  VariantLauncher launch;
};

template <bool kFp8, vorta_dtype kDtype, int kTile, int kEpilogue>
constexpr Instance instance() {
  return {kFp8, kDtype, kTile, kEpilogue, launch_variant<kFp8, kDtype, kTile, kEpilogue>};
}

constexpr Instance kInstances[] = {
    instance<false, VORTA_FLOAT16, kWide, kBias>(),
    instance<false, VORTA_FLOAT16, kWide, kBiasGelu>(),
    instance<false, VORTA_FLOAT16, kWide, kBiasGated>(),
    instance<false, VORTA_FLOAT16, kTallWide, kBias>(),
    instance<false, VORTA_FLOAT16, kTallWide, kBiasGelu>(),
    instance<false, VORTA_FLOAT16, kSquareTurns, kBias>(),
    instance<false, VORTA_FLOAT16, kSquareTurns, kBiasGelu>(),
    instance<false, VORTA_FLOAT16, kSquareTurns, kBiasGated>(),
    instance<false, VORTA_FLOAT16, kWideTurns, kBias>(),
    instance<false, VORTA_FLOAT16, kWideTurns, kBiasGelu>(),
    instance<true, VORTA_FLOAT16, kWide, kBias>(),
    instance<true, VORTA_FLOAT16, kWide, kBiasGelu>(),
    instance<true, VORTA_FLOAT16, kWide, kBiasGated>(),
    instance<true, VORTA_FLOAT16, kWide, kBiasGeluQuantized>(),
    instance<true, VORTA_FLOAT16, kTallWide, kBias>(),
    instance<true, VORTA_FLOAT16, kTallWide, kBiasGelu>(),
    instance<true, VORTA_FLOAT16, kSquareTurns, kBias>(),
    instance<true, VORTA_FLOAT16, kSquareTurns, kBiasGelu>(),
    instance<true, VORTA_FLOAT16, kSquareTurns, kBiasGated>(),
    instance<true, VORTA_FLOAT16, kSquareTurns, kBiasGeluQuantized>(),
    instance<true, VORTA_FLOAT16, kWideTurns, kBias>(),
    instance<true, VORTA_FLOAT16, kWideTurns, kBiasGelu>(),
};

constexpr int kOfTile = 20, kOfAxis = 10;

int epilogue_of(const linear::Product& p) {
  if (p.inverse_output_scale != nullptr) return p.gelu ? kBiasGeluQuantized : -1;
  if (p.residual != nullptr) return p.gelu ? -1 : kBiasGated;
  return p.gelu ? kBiasGelu : kBias;
}

}  // namespace

cudaError_t launch_variant(const linear::Product& product, int candidate, cudaStream_t stream) {
  const int number = candidate - kFirstVariant;
  if (number < 0 || product.adds) return cudaErrorNotSupported;
  const int tile = number / kOfTile, epilogue = epilogue_of(product);
  const BandShape bands{1 << (number % kOfAxis), number % kOfTile >= kOfAxis};
  for (const Instance& instance : kInstances) {
    if (instance.fp8 == product.fp8 && instance.dtype == product.dtype && instance.tile == tile &&
        instance.epilogue == epilogue) {
      return instance.launch(product, bands, stream);
    }
  }
  return cudaErrorNotSupported;
}

}  // namespace vorta::sm90_linear

#else

namespace vorta::sm90_linear {

cudaError_t launch_variant(const linear::Product&, int, cudaStream_t) { return cudaErrorNotSupported; }

}  // namespace vorta::sm90_linear

#endif

int vorta::sm90_linear::variant_of_environment(bool fp8) {
  static const char* const named = std::getenv("VORTA_LINEAR_VARIANT");
  const char* found = named == nullptr ? nullptr : std::strstr(named, fp8 ? "8:" : "16:");
  return found == nullptr ? 0 : std::atoi(found + (fp8 ? 2 : 3));
}
