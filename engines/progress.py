# SPDX-License-Identifier: Apache-2.0
"""What the builder is doing, from TensorRT's IProgressMonitor to a callback or a rich progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vorta_trt.engines.cancel import Cancellation
from vorta_trt.engines.heap import release_free_memory


@dataclass(frozen=True)
class BuildProgress:
    """One event: `step` of `steps` of `phase` are done. Phases nest; the last event of a phase has step == steps."""

    phase: str
    parent: str | None
    step: int
    steps: int


ProgressCallback = Callable[[BuildProgress], None]


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
    """A progress bar on stderr, if that is a terminal: a line per open phase; the innermost come and go."""
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
