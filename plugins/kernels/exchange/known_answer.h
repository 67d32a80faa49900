// SPDX-License-Identifier: Apache-2.0
#ifndef VORTA_TRT_KERNELS_EXCHANGE_KNOWN_ANSWER_H_
#define VORTA_TRT_KERNELS_EXCHANGE_KNOWN_ANSWER_H_

#include "exchange/communicator.h"

namespace vorta::exchange {

/// Sends values that every rank can compute from every rank to every other, and compares what arrives. Fails unless all
/// is right within `timeout_seconds`, and has then aborted the communicator. Waits for the GPU.
vorta_status exchange_known_answer(const Communicator& communicator, double timeout_seconds) noexcept;

}  // namespace vorta::exchange

#endif  // VORTA_TRT_KERNELS_EXCHANGE_KNOWN_ANSWER_H_
