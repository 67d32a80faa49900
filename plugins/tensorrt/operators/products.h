// SPDX-License-Identifier: Apache-2.0
//
// What the layers of vorta_trt/linear.h share.
#ifndef VORTA_TENSORRT_OPERATORS_PRODUCTS_H_
#define VORTA_TENSORRT_OPERATORS_PRODUCTS_H_

#include "field_table.h"
#include "vorta_trt/linear.h"

namespace vorta::plugin {

// Values of the field `activation`, in the order of the C API's enumeration.
inline constexpr const char* kActivations[] = {"none", "gelu_tanh"};
static_assert(VORTA_ACTIVATION_NONE == 0 && VORTA_ACTIVATION_GELU_TANH == 1);
inline constexpr Choices kActivationChoices[] = {{"activation", kActivations, 2}};

// Logs once per process and precision which kernels compute products, or why the slow kernel does; `name` is the
// operator's.
void reportProducts(const char* name, vorta_linear_precision precision);

}  // namespace vorta::plugin

#endif  // VORTA_TENSORRT_OPERATORS_PRODUCTS_H_
