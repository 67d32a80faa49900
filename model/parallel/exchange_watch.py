# SPDX-License-Identifier: Apache-2.0
"""`ExchangeWatch`: limits the time of exchanges that are kernels in the stream that computes.

torch.distributed ends a process whose exchange takes longer than its group's time-out. Nothing limits the library's
own exchanges, so a thread watches them and ends the process in the same way. By then neither the work that waits on the
GPU nor the work after it is of use, and another process knows the cause.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import torch

LOOK_EVERY: Final = 1.0  # seconds


class Mark(Protocol):
    """A mark after an exchange in its stream, such as a `torch.cuda.Event`; it says whether the exchange has ended."""

    def query(self) -> bool: ...


@dataclass
class Pending:
    """An exchange that is not known to have ended.

    Attributes:
        since: When it was enqueued, on the monotonic clock.
        mark: Mark after the exchange; None while the exchange is being enqueued, which blocks if the GPU is far behind.
    """

    since: float
    mark: Mark | None = None


class ExchangeWatch:
    """Watches the exchanges of one communicator.

    Args:
        what: Names the exchanges in messages.
        timeout: Seconds that an exchange may take. For one that waits in the stream behind others, they count from the
            end of the last one.
        check: Says what else is wrong; called about every second, and never after `stop` has returned.
        end: Called with what is wrong; ends the process.
        gpu: Number of the GPU that the thread looks at; None for no GPU.

    Raises:
        ImportError: There are GPUs, and cuda-bindings is not installed.
    """

    def __init__(
        self,
        what: str,
        timeout: float,
        check: Callable[[], str],
        end: Callable[[str], None] | None = None,
        gpu: int | None = None,
    ) -> None:
        self.timeout = timeout
        self._what, self._check, self._end, self._gpu = what, check, end or end_process, gpu
        self._pending: list[Pending] = []
        self._progress = 0.0  # when the last one was seen to have ended
        self._lock = threading.RLock()  # the garbage collector may finalise a communicator in its watch's own thread
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        # Imported here, so that its absence is an error for the caller who wants to be watched.
        self._cudart = importlib.import_module("cuda.bindings.runtime") if torch.cuda.is_available() else None

    @contextmanager
    def __call__(self, mark: Callable[[], Mark | None]) -> Iterator[None]:
        """Watches what is enqueued within the block, until the GPU reaches the mark that is made after it."""
        entry = Pending(time.monotonic())
        with self._lock:
            self._pending.append(entry)
            if self._thread is None and not self._ended.is_set():
                self._thread = threading.Thread(target=self._look, name="vorta-trt exchanges", daemon=True)
                self._thread.start()
        try:
            yield
            entry.mark = mark()
        finally:
            if entry.mark is None:  # it failed, or has ended already
                with self._lock:
                    self._pending.remove(entry)

    def wait(self, seconds: float) -> bool:
        """Waits for all exchanges, but not longer than that; whether they have ended."""
        end = time.monotonic() + seconds
        while self._unfinished():
            if time.monotonic() > end:
                return False
            time.sleep(0.001)
        return True

    def stop(self) -> None:
        """Watches no longer; does not wait for any exchange. May be called twice."""
        with self._lock:  # the communicator that is checked may be destroyed soon
            self._ended.set()

    def wrong(self) -> str:
        """Says what is wrong now; "" if nothing is."""
        pending = self._unfinished()
        if pending and time.monotonic() - max(pending[0].since, self._progress) > self.timeout:
            return f"{self._what}: one has taken longer than {self.timeout:g} s"
        with self._lock:
            return "" if self._ended.is_set() else self._check()

    def _unfinished(self) -> list[Pending]:
        with self._lock:
            left = [each for each in self._pending if each.mark is None or not each.mark.query()]
            if len(left) < len(self._pending):
                self._progress = time.monotonic()
            self._pending = left
            return list(left)

    def _look(self) -> None:
        if self._gpu is not None:  # a thread begins on GPU 0, where CUDA might make a context for every rank
            torch.cuda.set_device(self._gpu)
        if self._cudart is not None:  # asking for an event must not end the capture of a graph in another thread
            relaxed = self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeRelaxed
            self._cudart.cudaThreadExchangeStreamCaptureMode(relaxed)
        while not self._ended.wait(LOOK_EVERY):
            wrong = self.wrong()
            if wrong and not self._ended.is_set():
                self._end(wrong)
                return


def end_process(wrong: str) -> None:
    """Ends the process with SIGABRT, as torch.distributed does, and prints the stacks of its threads."""
    print(f"{wrong}; see what the other ranks say; this process ends", file=sys.stderr, flush=True)
    faulthandler.dump_traceback()
    os.kill(os.getpid(), signal.SIGABRT)
