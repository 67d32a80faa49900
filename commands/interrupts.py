# SPDX-License-Identifier: Apache-2.0
"""Delays Ctrl-C while packages are imported.

Libraries do not expect an exception in the middle of their import: some swallow it and stay half imported, some abort
the process. So an interrupt is delayed until the main thread imports nothing, which takes seconds at most.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

IMPORTER = "<frozen importlib."  # file names of Python's own import frames begin with this
RETRY_SECONDS = 0.05


def guard_imports() -> None:
    """Installs the handler of SIGINT if the current one is Python's own; to be called once, on the main thread."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt; during an import, it sends the signal again a moment later."""
    if not _imports(frame):
        signal.default_int_handler(number, frame)
    again = threading.Timer(RETRY_SECONDS, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _imports(frame: FrameType | None) -> bool:
    """Whether a frame or one of its callers is importing a module."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(IMPORTER):
            return True
        frame = frame.f_back
    return False
