# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C while packages are imported.

Libraries are not written for an exception in the middle of their import: some swallow it and stay half imported, some
abort the process. So an interrupt waits until no import is under way on the main thread, which takes seconds at most.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

IMPORTER = "<frozen importlib."  # files of the frames in which Python imports a module
RETRY_SECONDS = 0.05


def guard_imports() -> None:
    """Puts the handler of SIGINT into place, where it is Python's own; to be called once, on the main thread."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Raises KeyboardInterrupt, or sends the signal again a moment later."""
    if not _imports(frame):
        signal.default_int_handler(number, frame)
    again = threading.Timer(RETRY_SECONDS, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _imports(frame: FrameType | None) -> bool:
    """Whether an import is under way in a frame or in one of its callers."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(IMPORTER):
            return True
        frame = frame.f_back
    return False
