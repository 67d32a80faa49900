# SPDX-License-Identifier: Apache-2.0
"""Handles standard output and standard error that nobody reads, that are closed, or whose disk is full.

If a reader of the results leaves early, as in `vorta-trt inspect model.bundle | head`, the program ends silently with
the exit code of every Unix tool. Results that cannot be written for another reason are an error. Progress and messages
that cannot be written are dropped: a build goes on when its standard error is gone.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any, NoReturn

BROKEN_PIPE = 141  # what a shell shows of a tool that SIGPIPE ended: 128 + 13


class _Results(io.FileIO):
    """Standard output: a write that fails ends the program."""

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            self._end(error)

    def _end(self, error: OSError) -> NoReturn:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # discards what is still buffered
        if isinstance(error, BrokenPipeError):
            raise SystemExit(BROKEN_PIPE)
        print(f"error: standard output: cannot be written: {error.strerror}; give a file or a pipe", file=sys.stderr)
        raise SystemExit(1)


class _Messages(io.FileIO):
    """Standard error: text that cannot be written is dropped."""

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def guard_streams() -> None:
    """Replaces sys.stdout and sys.stderr; to be called once, before anything is written.

    A closed descriptor is opened on the null device. Otherwise the next opened file would get its number, and libraries
    would print into that file. Standard output that was closed still refuses writes.
    """
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)  # gets the lowest free number, which is the closed one
    sys.stderr = _text(_Messages(2, "w", closefd=False), by_line=True)
    results = _Results(1, "w", closefd=False)
    sys.stdout = _text(results, by_line=results.isatty())


def _text(raw: io.FileIO, *, by_line: bool) -> io.TextIOWrapper:
    """Text in the encoding of the environment; characters that it lacks are escaped instead of raising an error."""
    old = sys.stdout or sys.__stdin__
    encoding = old.encoding if old is not None else "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=by_line)
