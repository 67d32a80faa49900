# SPDX-License-Identifier: Apache-2.0
"""NVTX ranges for Nsight Systems, where torch has CUDA; nothing elsewhere."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext


def nvtx_range(name: str) -> AbstractContextManager[None]:
    """Makes a range that lasts as long as the context; it costs next to nothing where no profiler listens."""
    torch = sys.modules.get("torch")  # nothing runs on a GPU without it
    if torch is None or torch.version.cuda is None:
        return nullcontext()
    return torch.cuda.nvtx.range("{}", name)  # type: ignore[no-any-return]  # it formats: a name may have braces
