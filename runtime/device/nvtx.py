# SPDX-License-Identifier: Apache-2.0
"""NVTX ranges for Nsight Systems, where torch has CUDA; without CUDA they do nothing."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext


def nvtx_range(name: str) -> AbstractContextManager[None]:
    """Makes a range that lasts as long as the context; without a profiler it costs next to nothing."""
    torch = sys.modules.get("torch")  # engines on a GPU need torch, so without it there is nothing to mark
    if torch is None or torch.version.cuda is None:
        return nullcontext()
    return torch.cuda.nvtx.range("{}", name)  # type: ignore[no-any-return]  # it calls str.format: a name may have braces
