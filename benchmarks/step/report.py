# SPDX-License-Identifier: Apache-2.0
"""Rows and files of `vorta-trt bench step`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vorta_trt.benchmarks.report import About, read_about, read_content, read_rows
from vorta_trt.benchmarks.step.cases import DENSE

SCHEMA = 1
QUESTION = "step"


@dataclass(frozen=True)
class StepRow:
    """One implementation, eager, compiled or as an engine, with one set of routes.

    Attributes:
        implementation: Ours, a peer or an engine.
        mode: "eager", "compiled" or "engine".
        routes: "dense" or the mix of coreset and sliding heads.
        state: "ok"; "wrong" where the sample differs from the reference's, so that the times count for nothing;
            "failed" or "unavailable", with the reason in `note`.
        note: The reason of a state that is not "ok".
        cold: Seconds of the first pass.
        median: Seconds of a pass, see `StepTiming`.
        minimum: Seconds of the fastest pass.
        runs: Timed passes.
        peak_memory_gib: Peak of torch's allocated GPU memory.
        kernel_shares: Share of the GPU's time by kind of kernel.
        flops: FLOPs of a pass.
        tflops: `flops` over the median, in TFLOP/s.
        difference: Relative L2 distance to the first sample with the same routes: dense rows compare with the first
            peer, routed rows with the same mix in the first mode, which itself has nothing to be compared with.
        times_dense: How many times faster than torch with cuDNN attention in the same mode; engines: in the last mode.
        times_own_dense: How many times faster than the same implementation in the same mode with every head full: what
            routing alone gains. The row "dense, our kernels" has 1; its `times_dense` is what the kernels alone gain.
    """

    implementation: str
    mode: str
    routes: str
    state: str = "ok"
    note: str = ""
    cold: float | None = None
    median: float | None = None
    minimum: float | None = None
    runs: int | None = None
    peak_memory_gib: float | None = None
    kernel_shares: Mapping[str, float] = field(default_factory=dict)
    flops: float | None = None
    tflops: float | None = None
    difference: float | None = None
    times_dense: float | None = None
    times_own_dense: float | None = None


@dataclass(frozen=True)
class LoopRow:
    """A sampling loop: scheduler, step plan and transformer together.

    Attributes:
        name: Name of the loop, such as "50 steps".
        routes: The mix of coreset and sliding heads.
        steps: Steps of the whole schedule.
        computed: Steps of the schedule that are computed; a cache answers the others.
        passes: Passes of the transformer in a computed step.
        measured: Steps that were run.
        measured_computed: Computed ones among them.
        computed_seconds: Median seconds of a computed step.
        reused_seconds: Median seconds of a step that the cache answers.
        seconds: Seconds of the whole schedule, measured if all of it was run, otherwise extrapolated.
        extrapolated: Whether they are extrapolated.
        times_dense: How many times faster than the dense schedule.
        note: What the loop was compared with.
    """

    name: str
    routes: str
    steps: int
    computed: int
    passes: int
    measured: int
    measured_computed: int
    computed_seconds: float
    reused_seconds: float | None
    seconds: float
    extrapolated: bool
    times_dense: float | None = None
    note: str = ""


class StepAbout(About):
    """What tables and pictures show of the case as well.

    Attributes:
        case: Model and video.
        layers: Number of layers.
        heads: Number of heads.
        weights: How the weights were made, and their data type.
    """

    case: str
    layers: int
    heads: int
    weights: str


@dataclass(frozen=True)
class StepReport:
    """`about`: environment, case, options; rows in the order in which they were measured."""

    about: Mapping[str, Any]
    rows: Sequence[StepRow]
    loops: Sequence[LoopRow] = ()

    @property
    def passed(self) -> bool:
        """Whether no row, of ours or of a peer, is wrong or failed."""
        return all(row.state in ("ok", "unavailable") for row in self.rows)

    def row(self, implementation: str, mode: str, routes: str = DENSE) -> StepRow | None:
        """Finds a row; None if there is none."""
        wanted = (implementation, mode, routes)
        return next((row for row in self.rows if (row.implementation, row.mode, row.routes) == wanted), None)

    def to_json(self) -> str:
        """Gives the content of a report's file."""
        content = {
            "schema": SCHEMA,
            "question": QUESTION,
            **self.about,
            "rows": [asdict(row) for row in self.rows],
            "loops": [asdict(loop) for loop in self.loops],
        }
        return json.dumps(content, indent=1)

    @classmethod
    def read(cls, path: Path) -> StepReport:
        """Reads what `to_json` gave; raises OSError, or ReportError for anything that is no such report."""
        content = read_content(path, SCHEMA, QUESTION)
        rows, loops = read_rows(StepRow, content, "rows", path), read_rows(LoopRow, content, "loops", path)
        return cls(read_about(StepAbout, content, path), rows, loops)
