# SPDX-License-Identifier: Apache-2.0
"""TensorRT's log, bridged to Python's `logging`, with collectors that gather what one build said.

TensorRT keeps the first logger of a process for everything global (registry, parser), so there is one bridge per
flavour, and each build collects from it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

ERROR_SEVERITIES = ("INTERNAL_ERROR", "ERROR")

# TensorRT's INFO lists every phase of every build: detail for us. VERBOSE stays below Python's lowest named level.
LEVELS = {
    "INTERNAL_ERROR": logging.ERROR,
    "ERROR": logging.ERROR,
    "WARNING": logging.WARNING,
    "INFO": logging.DEBUG,
    "VERBOSE": logging.DEBUG - 5,
}


# Warning of TensorRT's parser about nodes that were exported before this attribute existed. Without it the precision is
# "same".
_OPTIONAL_ATTRIBUTE = "Attribute attention_precision not found in plugin node"


def is_noise(message: str) -> bool:
    """Says whether a message can be ignored.

    Without a driver, TensorRT logs an error of the CUDA runtime after every other error, whatever caused that one. It
    also warns of a missing attribute that is optional.
    """
    without_driver = "catchCudaError" in message and "cudaError 35" in message
    return (without_driver or _OPTIONAL_ATTRIBUTE in message) and "\n" not in message.strip()


@dataclass(eq=False)  # compared by identity: collectors of several threads may be open at once
class Collected:
    """What TensorRT logged while a collector was open."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    infos: list[str] = field(default_factory=list)


class LogHub:
    """Passes each message to Python's logging and to the collectors that are open."""

    def __init__(self, name: str) -> None:
        self.logger = logging.getLogger(name)
        self._collectors: list[Collected] = []
        # TensorRT logs from its own threads. Garbage collection inside of `emit` may free an engine, which then logs.
        self._lock = threading.RLock()

    def emit(self, severity: str, message: str) -> None:
        """Passes a message of TensorRT to the log and to the open collectors."""
        level = LEVELS[severity]
        with self._lock:
            # The owner of a collector puts its errors into an exception, or logs them.
            if is_noise(message) or (severity in ERROR_SEVERITIES and self._collectors):
                level = min(level, logging.DEBUG)
            for collector in () if is_noise(message) else self._collectors:
                if severity in ERROR_SEVERITIES:
                    collector.errors.append(message)
                elif severity == "WARNING":
                    collector.warnings.append(message)
                elif severity == "INFO":
                    collector.infos.append(message)
        self.logger.log(level, "%s", message)

    @contextmanager
    def collect(self) -> Iterator[Collected]:
        """Collects what TensorRT says during the block."""
        collector = Collected()
        with self._lock:
            self._collectors.append(collector)
        try:
            yield collector
        finally:
            with self._lock:
                self._collectors.remove(collector)


def tensorrt_logger(trt: Any, hub: LogHub) -> Any:
    """An `ILogger` of the flavour's own module that emits into `hub`."""

    class BridgedLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            hub.emit(severity.name, message)

    return BridgedLogger()
