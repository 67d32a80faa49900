# SPDX-License-Identifier: Apache-2.0
"""Stopping a long build on SIGINT, SIGTERM or SIGHUP so that its temporary files go first.

TensorRT calls back into Python between its steps; an exception raised there by a signal handler is swallowed. So the
handlers only note the signal, the progress monitor tells TensorRT to stop, and the signal is delivered again, to the
handler that was there before, once everything is cleaned up.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from vorta_trt.engines.errors import BuildCancelled

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Cancellation:
    """Context manager around a build. Outside the main thread Python allows no handlers, and only `cancel()` works."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.error: BaseException | None = None  # what the caller's progress callback raised
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Cancellation:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is signal.SIG_IGN:  # nohup, a shell's background jobs
                    continue
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            # None: the handler was not installed from Python, and Python cannot put it back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self.signal is not None:
            signal.raise_signal(self.signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)

    def cancel(self, error: BaseException) -> None:
        self.error = error

    @property
    def requested(self) -> bool:
        return self.signal is not None or self.error is not None

    def check(self) -> None:
        """Raises if the build shall stop; called between steps and between chunks of a copy."""
        if self.error is not None:
            raise self.error
        if self.signal is not None:
            raise BuildCancelled(f"build cancelled by {self.signal.name}")
