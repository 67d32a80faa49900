// SPDX-License-Identifier: Apache-2.0
#include "operators.h"

#include <string>

namespace vorta::plugin {

const std::vector<const Operator*>& operators() {
  static const std::vector<const Operator*> all = {
      &routedAttention(),
      &ulyssesAttention(),
      &gatherTokens(),
      &qkNormRotary(),
      &headNorm(),
      &normModulate(),
      &residualNormModulate(),
      &quantize(),
      &joinedQuantize(),
      &normModulateQuantize(),
      &residualNormModulateQuantize(),
      &linear(),
      &joinedLinear(),
      &fp8Linear(),
      &crossAttention(),
  };
  return all;
}

std::vector<OutputAxis> attentionShape(int32_t /*output*/, const Setting& /*setting*/) {
  return {{0, 0}, {0, 1}, {0, 2}, {0, 3}};
}

std::vector<OutputAxis> packedShape(const Setting& setting) {
  return {{0, 0}, {0, 1}, {-1, 0, setting.inputs[0].d[2] / kPerInt32}};
}

void requireConstantFeatures(const Setting& setting, int32_t input) {
  if (setting.inputs[input].d[2] != kUnknown) return;
  throw PluginError(std::string(setting.record.op().inputs[input].name) +
                    " has an open number of features: must be a constant of the network; export the model again");
}

}  // namespace vorta::plugin
