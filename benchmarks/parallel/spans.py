# SPDX-License-Identifier: Apache-2.0
"""Times of the exchanges of a pass, and how much of them is waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

Span = tuple[str, float]
"""Name of an exchange, and its seconds."""


class Spans:
    """A context manager around exchanges, for `Ranks.watch`; it keeps their names and times in order.

    On a GPU the times are those between events in the stream that computes, so they include waiting for other GPUs.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, object, object]] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Times what is inside."""
        start = self._mark()
        yield
        self._marks.append((name, start, self._mark()))

    def take(self) -> list[Span]:
        """The spans since the last call; on a GPU, the caller must have synchronized before."""
        marks, self._marks = self._marks, []
        return [(name, self._seconds(start, end)) for name, start, end in marks]

    def _mark(self) -> object:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @staticmethod
    def _seconds(start: object, end: object) -> float:
        if isinstance(start, float) and isinstance(end, float):
            return end - start
        return 1e-3 * start.elapsed_time(end)  # type: ignore[attr-defined,no-any-return]


def exchanges_and_waiting(passes: Sequence[Sequence[Span]]) -> tuple[dict[str, float], float]:
    """Splits the time of exchanges into the exchanges themselves and waiting.

    Args:
        passes: The spans of the same pass on every GPU, in the same order.

    Returns:
        Seconds by name, where for every exchange the least of all GPUs counts; and the seconds above those, the mean of
        all GPUs.
    """
    by_name: dict[str, float] = {}
    waiting = 0.0
    for same in zip(*passes, strict=True):
        name, seconds = same[0][0], [span[1] for span in same]
        by_name[name] = by_name.get(name, 0.0) + min(seconds)
        waiting += sum(seconds) / len(seconds) - min(seconds)
    return by_name, waiting
