// SPDX-License-Identifier: Apache-2.0
#include "operator.h"

#include <cstring>
#include <string>

#include "logger.h"

namespace vorta::plugin {

void Record::copyTo(void* destination, size_t bytes) const {
  if (bytes != bytes_.size()) {
    throw PluginError("fields of " + std::string(op_->fields.name) + ": " + std::to_string(bytes_.size()) +
                      " bytes do not fit in " + std::to_string(bytes) + "; report this as a bug");
  }
  copyFirstTo(destination, bytes);
}

void Record::copyFirstTo(void* destination, size_t bytes) const {
  if (bytes > bytes_.size()) {
    throw PluginError("fields of " + std::string(op_->fields.name) + ": " + std::to_string(bytes_.size()) +
                      " bytes do not hold " + std::to_string(bytes) + "; report this as a bug");
  }
  std::memcpy(destination, bytes_.data(), bytes);
}

trt::DataType Setting::type() const {
  return types.empty() ? trt::DataType::kHALF : types[record.op().activationInput()];
}

int32_t Operator::activationInput() const {
  int32_t input = 0;
  while (inputs[input].holds != Holds::kActivation) ++input;
  return input;
}

Record recordFromFields(const Operator& op, const trt::PluginFieldCollection* fields) {
  std::vector<char> bytes(recordBytes(op.fields));
  readFields(op.fields, fields, bytes.data());
  Record record(op, std::move(bytes));
  op.check({record, {}, {}});
  return record;
}

}  // namespace vorta::plugin
