// SPDX-License-Identifier: Apache-2.0
#include "../attention_kernel.cuh"

template cudaError_t vorta::sm89_fp8::launch_attention<VORTA_FLOAT16, 64>(const RoutedAttentionParams&, cudaStream_t);
