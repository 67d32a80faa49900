# SPDX-License-Identifier: Apache-2.0
"""Times operators that run without a pause, with the clock of each and the power of the card.

An operator that is fast on its own may gain nothing in a pass: the card draws its 700 W and lowers its clock to do so.
So operators are timed back to back, in slices that take turns, and each slice states time, mean clock, cycles and
joules of a call. The clock is that of the multiprocessors themselves (clock_stamp.cu), between two stamps around each
call; power and energy are NVML's.
"""

from __future__ import annotations

import ctypes
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], Any]
SETTLE = 0.4  # share of a slice that is not counted: the clock follows the power with a delay
NVML_POWER_INSTANT = 186  # NVML_FI_DEV_POWER_INSTANT, milliwatts


class Stamps:
    """Clock stamps of one stream. Without clock_stamp.so they stay 0, and only times are measured.

    Args:
        count: Largest number of stamps.
    """

    def __init__(self, count: int) -> None:
        path = Path(__file__).with_name("clock_stamp.so")
        self._library = ctypes.CDLL(str(path)) if path.exists() else None
        self._processors = torch.cuda.get_device_properties(0).multi_processor_count
        self._slots = torch.zeros(count, self._processors, 2, dtype=torch.int64, device="cuda")
        self._used = 0

    def reset(self) -> None:
        """Forgets all stamps."""
        self._used = 0
        self._slots.zero_()

    def __call__(self) -> int:
        """Stamps the current stream; returns the stamp's number."""
        number = self._used
        if number >= len(self._slots):
            raise ValueError(f"{number} stamps: no more fit; make more")
        self._used += 1
        if self._library is not None:
            pointer = ctypes.c_void_p(self._slots[number].data_ptr())
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            if error := self._library.clock_stamp(pointer, self._processors, stream):
                raise RuntimeError(f"clock_stamp: cudaError_t {error}")
        return number

    def read(self) -> Tensor:
        """Cycles and nanoseconds, int64 [stamps, processors, 2] on the CPU."""
        torch.cuda.synchronize()
        return self._slots[: self._used].cpu()


def megahertz(before: Tensor, after: Tensor) -> float | None:
    """The median over the multiprocessors of cycles by time between two stamps [processors, 2]."""
    there = (before[:, 1] > 0) & (after[:, 1] > 0)
    if not bool(there.any()):
        return None
    cycles, nanoseconds = (after - before)[there].unbind(1)
    return float((cycles.double() / nanoseconds.double() * 1e3).median())


class Card:
    """Power, energy, clock and temperature of the card through NVML, sampled by a thread."""

    def __init__(self, period: float = 0.02) -> None:
        self._period, self.samples = period, []  # type: float, list[dict[str, Any]]
        self._stop = threading.Event()
        try:
            import pynvml  # type: ignore[import-not-found]  # of nvidia-ml-py

            pynvml.nvmlInit()
            self._nvml: Any = pynvml
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(0)
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        except Exception as error:  # no NVML binding: times and clocks of the stamps are still there
            print(f"no NVML: {error}", flush=True)
            self._nvml = None

    def joules(self) -> float | None:
        """Energy that the card has used since the driver was loaded; None if NVML does not tell."""
        if self._nvml is None:
            return None
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except Exception:
            return None

    def between(self, start: float, end: float) -> dict[str, float]:
        """Means of the samples of a time span, by time.perf_counter()."""
        found = [sample for sample in self.samples if start <= sample["at"] <= end]
        names = ("watts", "megahertz", "celsius")
        means = {n: [s[n] for s in found if s.get(n) is not None] for n in names}
        return {n: round(statistics.fmean(v), 1) for n, v in means.items() if v}

    def reasons(self, start: float, end: float) -> list[str]:
        """Why clocks were lowered within a time span, as NVML's bits in hexadecimal."""
        return sorted({hex(s["reasons"]) for s in self.samples if start <= s["at"] <= end and s.get("reasons")})

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()

    def _watch(self) -> None:
        nvml, handle = self._nvml, self._handle
        while not self._stop.wait(self._period):
            sample: dict[str, Any] = {"at": time.perf_counter()}
            for name, ask in (
                ("watts", self._watts),
                ("megahertz", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
                ("celsius", lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)),
                ("reasons", lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
            ):
                try:
                    sample[name] = ask()
                except Exception:
                    sample[name] = None
            self.samples.append(sample)

    def _watts(self) -> float:
        try:
            value = self._nvml.nvmlDeviceGetFieldValues(self._handle, [NVML_POWER_INSTANT])[0]
            if value.nvmlReturn == 0 and value.value.uiVal > 0:
                return float(value.value.uiVal) / 1e3
        except Exception:
            pass
        return float(self._nvml.nvmlDeviceGetPowerUsage(self._handle)) / 1e3


@dataclass
class Figures:
    """What was seen of one operator.

    Attributes:
        milliseconds: Milliseconds of each counted call.
        clocks: Megahertz of each of these calls.
        watts: Mean power of each slice.
        joules: Energy per call of each slice: the card's energy over the slice, divided by its calls.
    """

    milliseconds: list[float] = field(default_factory=list)
    clocks: list[float] = field(default_factory=list)
    watts: list[float] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """Medians; cycles are milliseconds times clock."""
        ms = statistics.median(self.milliseconds) if self.milliseconds else None
        clock = statistics.median(self.clocks) if self.clocks else None
        return {
            "ms": None if ms is None else round(ms, 4),
            "mhz": None if clock is None else round(clock),
            "megacycles": None if ms is None or clock is None else round(ms * clock / 1e3, 3),
            "watts": round(statistics.fmean(self.watts), 1) if self.watts else None,
            "joules": round(statistics.fmean(self.joules), 3) if self.joules else None,
            "calls": len(self.milliseconds),
        }


class Sustained:
    """Measures slices of back-to-back calls on the current stream."""

    def __init__(self, card: Card) -> None:
        self.card, self._stamps = card, Stamps(4096)

    def slice(self, seconds: float, figures: Figures, run: Run, between: Run | None = None) -> None:
        """Calls for some seconds, without a pause; what `between` enqueues runs before each call and is not timed."""
        torch.cuda.synchronize()
        self._stamps.reset()
        events: list[tuple[Any, Any, int, int]] = []
        start, joules = time.perf_counter(), self.card.joules()
        pending: list[Any] = []
        while time.perf_counter() - start < seconds and len(events) < 2000:
            if between is not None:
                between()
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            before = self._stamps()
            first.record()
            run()
            last.record()
            events.append((first, last, before, self._stamps()))
            pending.append(last)
            if len(pending) > 6:  # some calls ahead of the GPU, not more
                pending.pop(0).synchronize()
        torch.cuda.synchronize()
        end = time.perf_counter()
        used = self.card.joules()
        stamps = self._stamps.read()
        settled = start + SETTLE * (end - start)
        watts = self.card.between(settled, end).get("watts")
        if watts is not None:
            figures.watts.append(watts)
        if joules is not None and used is not None and used > joules and end - start > 0.8:
            figures.joules.append((used - joules) / len(events))
        elif watts is not None:
            figures.joules.append(watts * (end - start) / len(events))
        for first, last, before, after in events[int(SETTLE * len(events)) :]:
            figures.milliseconds.append(first.elapsed_time(last))
            clock = megahertz(stamps[before], stamps[after])
            if clock is not None:
                figures.clocks.append(clock)

    def in_turns(self, runs: Mapping[str, Run], seconds: float, rounds: int) -> dict[str, dict[str, Any]]:
        """Measures slices of all runs in turn, `rounds` times; each run gets `seconds` in all."""
        found = {name: Figures() for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                self.slice(seconds / rounds, found[name], run)
        return {name: figures.summary() for name, figures in found.items()}


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """The rows as lines of text."""
    cells = [[str(column) for column in columns]] + [
        ["" if row.get(c) is None else f"{row[c]:g}" if isinstance(row[c], float) else str(row[c]) for c in columns]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)) for line in cells)
