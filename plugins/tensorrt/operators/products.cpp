// SPDX-License-Identifier: Apache-2.0
#include "products.h"

#include <atomic>
#include <cstdio>
#include <cstring>

#include "logger.h"

namespace vorta::plugin {

void reportProducts(const char* name, vorta_linear_precision precision) {
  static std::atomic<bool> isReported[2] = {};  // by precision
  if (isReported[precision].exchange(true)) return;
  const char* reason = nullptr;
  const char* backend = vorta_linear_backend(precision, &reason);
  char message[1024];
  if (*reason != '\0') {
    std::snprintf(message, sizeof(message), "products take the slow kernel: %s", reason);
    logWarning(name, "enqueue", message);
  } else {
    const bool isOurs = std::strncmp(backend, "cublaslt", 8) != 0;
    std::snprintf(message, sizeof(message), "products are those of %s %s", backend,
                  isOurs ? "" : vorta_cublaslt_path());
    logInformation(name, "enqueue", message);
  }
}

}  // namespace vorta::plugin
