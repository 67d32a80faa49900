# SPDX-License-Identifier: Apache-2.0
"""Watching a long build, stopping it, and keeping it small.

TensorRT calls back into Python between its steps. An exception raised there, by a callback or a signal handler, is
swallowed. So signals and errors are only noted, the progress monitor tells TensorRT to stop, and the signal is
delivered again, to the handler that was there before, once everything is cleaned up.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from vorta_trt.engines.errors import BuildCancelled

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class BuildProgress:
    """One event: `step` of `steps` of `phase` are done. Phases nest; the last event of a phase has step == steps.

    `engine` says which engine of several is being built.
    """

    phase: str
    parent: str | None
    step: int
    steps: int
    engine: str = ""


ProgressCallback = Callable[[BuildProgress], None]


class Cancellation:
    """Context manager around a build. Outside the main thread Python allows no handlers, and only `cancel()` works."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.error: BaseException | None = None  # what the caller's progress callback raised
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Cancellation:
        self._install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        if self.signal is not None:
            signal.raise_signal(self.signal)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Restores the previous signal handlers between two builds: they stop the Python code there at once."""
        self.check()
        self._restore()
        try:
            yield
        finally:
            self._install()

    def _install(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is signal.SIG_IGN:  # nohup, a shell's background jobs
                    continue
                self._previous[number] = signal.signal(number, self._note)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            # None: the handler was not installed from Python, and Python cannot put it back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)

    def cancel(self, error: BaseException) -> None:
        """Notes an error of the progress callback, which stops the build and is raised later."""
        self.error = error

    @property
    def requested(self) -> bool:
        """Whether the build shall stop."""
        return self.signal is not None or self.error is not None

    def check(self) -> None:
        """Raises if the build shall stop; called between steps and between chunks of a copy."""
        if self.error is not None:
            raise self.error
        if self.signal is not None:
            raise BuildCancelled(f"build cancelled by {self.signal.name}")


def release_free_memory() -> None:
    """Gives freed memory back to the operating system, where glibc would keep it.

    TensorRT frees gigabytes of temporary weights. On a model of 1.3 billion weights a build peaks at 2.4
    times the weights with this, at 2.8 times without (a copy of them, and the mapped file, included in both).
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(0))


def progress_monitor(trt: Any, callback: ProgressCallback | None, cancellation: Cancellation) -> Any:
    """An `IProgressMonitor` that reports to `callback` and stops the build when `cancellation` asks for it.

    TensorRT swallows exceptions of these methods, so a callback's exception is kept in `cancellation` and raised later.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.open: dict[str, tuple[str | None, int]] = {}

        def _report(self, phase: str, step: int | None) -> None:
            parent, steps = self.open.get(phase, (None, 1))
            if callback is not None and not cancellation.requested:
                try:
                    callback(BuildProgress(phase, parent, steps if step is None else step, steps))
                except Exception as error:
                    cancellation.cancel(error)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            release_free_memory()
            self.open[phase_name] = (parent_phase, num_steps)
            self._report(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            # TensorRT's steps count from 0. The last one is reported by phase_finish.
            if step + 1 < self.open.get(phase_name, (None, 1))[1]:
                self._report(phase_name, step + 1)
            return not cancellation.requested

        def phase_finish(self, phase_name: str) -> None:
            release_free_memory()
            self._report(phase_name, None)
            self.open.pop(phase_name, None)

    return Monitor()


@contextmanager
def progress_bar(description: str = "build") -> Iterator[ProgressCallback]:
    """A progress bar on stderr, if that is a terminal, with one line for every open phase."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.file.isatty()) as bar:
        tasks: dict[str, TaskID] = {}

        def show(event: BuildProgress) -> None:
            if event.phase not in tasks:
                indent = "" if event.parent is None else "  "
                tasks[event.phase] = bar.add_task(f"{indent}{event.phase}", total=event.steps)
            bar.update(tasks[event.phase], completed=event.step)
            if event.step >= event.steps:
                bar.remove_task(tasks.pop(event.phase))

        yield show
