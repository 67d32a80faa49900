# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime reports to its makers and writes a device id and a database under HOME, unless it is told not to."""

from __future__ import annotations

import os


def disable_telemetry() -> None:
    """Turns the reports off for this process and its children; call it before `import onnxruntime`, which reads it."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
