# SPDX-License-Identifier: Apache-2.0
"""What a client is told of a failed job, and whether the engine still works."""

from __future__ import annotations

import sqlite3

from vorta_trt.model.errors import CheckpointError
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime.device.device_memory import DeviceOutOfMemory
from vorta_trt.runtime.sampling.finite import NonFiniteError, NonFiniteVideoError
from vorta_trt.serving.disk_reserve import is_full


def describe_failure(error: BaseException) -> tuple[str, str, bool]:
    """Describes a failure for the client.

    Returns:
        A word for programs, the message for people, and whether the engine still works.
    """
    import torch

    if isinstance(error, DeviceOutOfMemory | torch.OutOfMemoryError):
        return "out_of_memory", str(error), True
    if isinstance(error, NonFiniteError | NonFiniteVideoError):
        return "not_finite", str(error), True
    if is_full(error):
        return "disk_full", "the server's disk is full; ask again when its operator has made space", True
    if isinstance(error, sqlite3.Error):
        return "store_unavailable", f"the job store does not answer ({error}); ask again", True
    if isinstance(error, CheckpointError | FileNotFoundError):
        return "model_unavailable", str(error), True
    if isinstance(error, OverflowError | ZeroDivisionError):
        return "invalid_value", f"a number of the request is too large or too small: {error}", True
    if isinstance(error, ValueError):
        return "invalid_value", str(error), True
    if isinstance(error, MemoryError):
        return "out_of_memory", str(error) or "the server's memory is used up", True
    message = str(error) if isinstance(error, VortaError) else f"{type(error).__name__}: {error}"
    return "engine_error", message, False
