// SPDX-License-Identifier: Apache-2.0
#include "../attention_launch.cuh"

template vorta_status vorta::sm90::launch_cross_attention<VORTA_BFLOAT16, 128>(const RoutedAttentionParams&,
                                                                               cudaStream_t);
