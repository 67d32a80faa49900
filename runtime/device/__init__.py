# SPDX-License-Identifier: Apache-2.0
"""The GPU under an engine: CUDA runtime, buffers and scratch memory, arrays of other libraries, NVTX ranges."""
