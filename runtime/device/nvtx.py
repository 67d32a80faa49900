# SPDX-License-Identifier: Apache-2.0
"""NVTX ranges for Nsight Systems: torch's where it has CUDA, else those of the `nvtx` package if installed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any


def nvtx_range(name: str) -> AbstractContextManager[Any]:
    """A range that lasts as long as the context; costs next to nothing where no profiler listens."""
    return _annotation()(name)


@cache
def _annotation() -> Callable[[str], AbstractContextManager[Any]]:
    torch = sys.modules.get("torch")
    if torch is not None and torch.version.cuda is not None:
        return partial(torch.cuda.nvtx.range, "{}")  # which formats: a name may have braces
    if importlib.util.find_spec("nvtx") is not None:
        annotate: Callable[[str], AbstractContextManager[Any]] = importlib.import_module("nvtx").annotate
        return annotate
    return nullcontext
