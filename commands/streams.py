# SPDX-License-Identifier: Apache-2.0
"""Standard output and standard error of the program, when nobody reads them, a disk is full or they are closed.

A reader that leaves early, as `vorta-trt inspect model.bundle | head` does, ends the program in silence with the exit
code of every Unix tool. Results that cannot be written for another reason are an error. Progress and messages that
nobody can see are no reason to stop: a build goes on when its standard error is gone.
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # what is still buffered goes nowhere
        if isinstance(error, BrokenPipeError):
            raise SystemExit(BROKEN_PIPE)
        print(f"error: standard output: cannot be written: {error.strerror}; give a file or a pipe", file=sys.stderr)
        raise SystemExit(1)


class _Messages(io.FileIO):
    """Standard error: what cannot be written is dropped."""

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def guard_streams() -> None:
    """Replaces sys.stdout and sys.stderr; to be called once, before anything is written.

    A closed descriptor is opened on the null device, since the next file to be opened would get its number and take
    in what libraries print. Closed standard output refuses writes, as it did before.
    """
    for descriptor, mode in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)  # the lowest free number, which is this one
    sys.stderr = _text(_Messages(2, "w", closefd=False), by_line=True)
    results = _Results(1, "w", closefd=False)
    sys.stdout = _text(results, by_line=results.isatty())


def _text(raw: io.FileIO, *, by_line: bool) -> io.TextIOWrapper:
    """Text in the encoding of the environment; characters that it lacks are escaped instead of raising an error."""
    old = sys.stdout or sys.__stdin__
    encoding = old.encoding if old is not None else "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=by_line)
