# SPDX-License-Identifier: Apache-2.0
"""The GPU resources of an engine: torch's memory and streams, scratch memory, CUDA graphs, NVTX ranges."""
