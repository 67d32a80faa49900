# SPDX-License-Identifier: Apache-2.0
"""Progress on the terminal: one line on stderr with the stage, a bar and the elapsed time."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Any

from vorta_trt.model.tables import WIDE

if TYPE_CHECKING:
    from rich.console import Console


class Stages:
    """A context manager that shows a progress line on stderr; it shows nothing if stderr is no terminal.

    It is called with (what, done, total), as every progress callback of this project is; total 0 means unknown. Each
    call updates the bar, also for the same stage.
    """

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.file.isatty())
        self._task = self._bar.add_task("starting", total=None)

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None:
        """Shows a stage and its progress."""
        self._bar.update(self._task, description=what, completed=done, total=total or None)

    def __enter__(self) -> Stages:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


def output_console() -> Console:
    """A console on stdout, as wide as the terminal; in a pipe wide enough for all tables, which then lack borders."""
    from rich.console import Console
    from rich.table import Table

    class Piped(Console):
        def print(self, *objects: Any, **options: Any) -> None:
            for table in objects:
                if isinstance(table, Table):
                    table.box = None
            super().print(*objects, **options)

    return Console(highlight=False) if sys.stdout.isatty() else Piped(width=WIDE, highlight=False)
