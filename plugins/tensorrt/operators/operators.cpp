// SPDX-License-Identifier: Apache-2.0
#include "operators.h"

namespace vorta::plugin {

const std::vector<const Operator*>& operators() {
  static const std::vector<const Operator*> all = {
      &routedAttention(),      &qkNormRotary(), &headNorm(),  &normModulate(),
      &residualNormModulate(), &linear(),       &fp8Linear(), &crossAttention(),
  };
  return all;
}

}  // namespace vorta::plugin
