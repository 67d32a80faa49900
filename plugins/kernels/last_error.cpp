// SPDX-License-Identifier: Apache-2.0
#include "last_error.h"

#include <cstdarg>
#include <cstdio>

namespace vorta {
namespace {
thread_local char message[512] = "";
}  // namespace

vorta_status fail(vorta_status status, const char* format, ...) noexcept {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof(message), format, arguments);
  va_end(arguments);
  return status;
}

const char* last_error() noexcept { return message; }

}  // namespace vorta
