# SPDX-License-Identifier: Apache-2.0
"""Bundle -> results: executors behind one `Engine`, verification, schedules. Names are loaded on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vorta_trt.runtime.engine import Engine as Engine
    from vorta_trt.runtime.schedules import schedule_timesteps as schedule_timesteps
    from vorta_trt.runtime.tensors import TensorSpec as TensorSpec
    from vorta_trt.runtime.verify_report import VerifyReport as VerifyReport

_HOME = {
    "Engine": "engine",
    "TensorSpec": "tensors",
    "VerifyReport": "verify_report",
    "schedule_timesteps": "schedules",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
