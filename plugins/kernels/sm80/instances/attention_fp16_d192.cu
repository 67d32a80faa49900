// SPDX-License-Identifier: Apache-2.0
#include "../attention_launch.cuh"

template cudaError_t vorta::sm80::launch_attention<VORTA_FLOAT16, 192>(const RoutedAttentionParams&, cudaStream_t);
