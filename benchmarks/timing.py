# SPDX-License-Identifier: Apache-2.0
"""The one timing function of this project: CUDA events, warm-up, a cold L2 cache, medians.

Between two runs, outside the events, a buffer is written that is at least twice the L2 cache. That write takes the GPU
a fraction of a millisecond, in which the host launches the next run: so the events see the GPU's time and not the
host's, as long as the launch takes less than the write. Small problems in eager torch come close; a CUDA graph does
not. Before each measurement the GPU rests, so that a hot row does not take the next one's clocks away.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# About 0.3 ms of an H200's memory; never less than 2 x L2, never more than an eighth of what is free.
FLUSH_BYTES = 1 << 30
MATMUL_SIZE = 8192  # of the square product that gives the ceiling: 1.1 TFLOP, past every wave effect
REST_SECONDS = 0.2
Run = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Milliseconds over `runs` runs."""

    median: float
    minimum: float
    p90: float
    runs: int

    @classmethod
    def of(cls, milliseconds: list[float]) -> Timing:
        """Raises ValueError without a measurement."""
        if not milliseconds:
            raise ValueError("no measurement: at least one run must be timed")
        ordered = sorted(milliseconds)
        p90 = ordered[math.ceil(0.9 * len(ordered)) - 1]
        return cls(statistics.median(ordered), ordered[0], p90, len(ordered))


class Timer:
    """Times runs on the current CUDA device.

    Args:
        seconds: GPU time that one measurement may take; it decides the number of runs.
        fewest: Least number of timed runs.
        most: Largest number of timed runs.
        warm_up: Number of runs before, which are not timed.
    """

    def __init__(self, seconds: float = 0.5, fewest: int = 5, most: int = 30, warm_up: int = 2) -> None:
        device = torch.cuda.current_device()
        free, _ = torch.cuda.mem_get_info(device)
        smallest = 2 * torch.cuda.get_device_properties(device).L2_cache_size
        size = max(smallest, min(FLUSH_BYTES, free // 8))
        self._flush = torch.empty(size, dtype=torch.uint8, device="cuda")
        self._seconds, self._fewest, self._most, self._warm_up = seconds, fewest, most, warm_up

    def __call__(self, run: Run) -> Timing:
        """Times `run` on the current stream. What `run` raises comes through."""
        torch.cuda.synchronize()
        time.sleep(REST_SECONDS)
        for _ in range(self._warm_up - 1):
            run()
        estimate = self._measure(run, 1)[0]  # ms; warms up, too
        runs = round(min(max(1e3 * self._seconds / max(estimate, 1e-3), self._fewest), self._most))
        return Timing.of(self._measure(run, runs))

    def _measure(self, run: Run, runs: int) -> list[float]:
        events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(runs)]
        for start, end in events:
            self._flush.zero_()
            start.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in events]


class GraphReplay:
    """One call as a CUDA graph: what an engine replays, without the host's part.

    `run` is captured once; each call replays it and returns the same output tensor.

    A `run` that waits for the host or reads a device value cannot be captured, and torch raises RuntimeError.
    """

    def __init__(self, run: Callable[[], Tensor]) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            run()  # lazily made things are made before the capture
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._output = run()

    def __call__(self) -> Tensor:
        """Replays; the output of the call before is overwritten."""
        self._graph.replay()
        return self._output


def matmul_ceiling(timer: Callable[[Run], Timing], dtype: torch.dtype, size: int = MATMUL_SIZE) -> float:
    """TFLOP/s of torch's own size^3 matrix product on random numbers: what this GPU gives at best, at its own clocks.

    Random, because zeros draw less power and run faster than any real data.
    """
    left, right = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))  # [size, size]
    return tflops(2 * size**3, timer(lambda: left @ right).median)


def tflops(flops: float, milliseconds: float) -> float:
    """TFLOP/s."""
    return flops / milliseconds * 1e-9
