# SPDX-License-Identifier: Apache-2.0
"""Errors of runs with several processes."""

from __future__ import annotations

from vorta_trt.plugins.errors import VortaError


class ParallelError(VortaError):
    """Processes cannot start, cannot meet, or do not agree."""


class RankError(ParallelError):
    """One rank failed, so all ranks were ended. With --debug its traceback is shown as the cause.

    Attributes:
        rank: The rank that failed first.
        traceback: Its traceback as text; "" where a signal ended the rank.
    """

    def __init__(self, message: str, rank: int, traceback: str = "") -> None:
        super().__init__(message)
        self.rank, self.traceback = rank, traceback
        self.__cause__ = RemoteTraceback(traceback) if traceback else None


class StoppedError(ParallelError):
    """Rank 0 stopped the request, which all ranks compute together; every rank is ready for the next request."""


class RemoteTraceback(Exception):  # noqa: N818  # as multiprocessing calls its own
    """The traceback of another process, as the cause of an error in this one."""

    def __init__(self, text: str) -> None:
        super().__init__(f'\n"""\n{text}"""')
