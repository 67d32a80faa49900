# SPDX-License-Identifier: Apache-2.0
"""Files of `torch.save`: they are read as tensors and plain values, never as code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from vorta_trt.plugins.errors import VortaError
from vorta_trt.plugins.host_memory import HostOutOfMemory, mapping

_UNREADABLE = (
    pickle.UnpicklingError,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
)
_REASON = "WeightsUnpickler error:"  # what torch says in front of the reason, among advice to run the file's code


class UnreadableTorchFile(VortaError, ValueError):
    """A file that torch.load(weights_only=True) does not read; the message is the reason alone."""


def load_torch_file(file: Path) -> Any:
    """Loads the content of a file of `torch.save`, on the CPU.

    Raises:
        UnreadableTorchFile: It is none, is damaged, or holds more than tensors and plain values.
        HostOutOfMemory: It does not fit into memory.
    """
    try:
        with mapping(file):
            return torch.load(file, map_location="cpu", weights_only=True)
    except HostOutOfMemory:
        raise
    except _UNREADABLE as error:
        raise UnreadableTorchFile(_reason(error)) from error


def _reason(error: Exception) -> str:
    """The reason in one line, without torch's advice to load the file with the code in it."""
    text = str(error)
    lines = text.rpartition(_REASON)[2].strip().splitlines() or [type(error).__name__]
    return lines[0].partition(" Please use ")[0].rstrip(". ")
