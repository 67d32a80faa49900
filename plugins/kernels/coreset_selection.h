// SPDX-License-Identifier: Apache-2.0
#ifndef VORTA_TRT_KERNELS_CORESET_SELECTION_H_
#define VORTA_TRT_KERNELS_CORESET_SELECTION_H_

#include <cuda_runtime_api.h>

#include "params.h"

namespace vorta {

/// Fills the workspace's lists for every head that `routes` sends to the coreset, with `compact` also its compact keys
/// and values (D must be 64 or 128, see workspace.h), and zeroes the work counters. Other heads cost next to nothing.
///
/// On compute capability 9.0 and above the kernel lets a dependent start early: a kernel that is launched behind it
/// with cudaLaunchAttributeProgrammaticStreamSerialization must execute griddepcontrol.wait before it touches the
/// workspace.
cudaError_t launch_coreset_selection(const RoutedAttentionParams& params, vorta_dtype dtype, bool compact,
                                     cudaStream_t stream);

}  // namespace vorta

#endif  // VORTA_TRT_KERNELS_CORESET_SELECTION_H_
