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

    state: "ok"; "wrong": its sample differs from the reference's, and its times count for nothing; "failed",
        "unavailable": `note` has the reason.
    cold, median, minimum: seconds of one pass, see `StepTiming`. tflops: FLOPs of the pass over the median.
    difference: of the sample, relative, to the first one with the same routes: dense to the first peer's, routed to the
        first mode's. The first routed one has nothing to be compared with.
    times_dense: how many times faster than torch with cuDNN attention in the same mode; engines: in the last mode.
    times_own_dense: how many times faster than the same implementation in the same mode with every head full: what
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

    steps, computed: of the whole schedule. passes: of the transformer in a computed step. measured: how many steps were
        run, and `measured_computed` of them computed. computed_seconds, reused_seconds: of one step of either kind,
        medians. seconds: of the whole schedule, measured if all of it was run, otherwise extrapolated from these.
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
        layers: How many.
        heads: How many.
        weights: What they are.
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
        """Nothing of ours is wrong or failed."""
        return all(row.state in ("ok", "unavailable") for row in self.rows)

    def row(self, implementation: str, mode: str, routes: str = DENSE) -> StepRow | None:
        wanted = (implementation, mode, routes)
        return next((row for row in self.rows if (row.implementation, row.mode, row.routes) == wanted), None)

    def to_json(self) -> str:
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
        """Inverse of `to_json`; raises OSError, or ReportError for anything that is no such report."""
        content = read_content(path, SCHEMA, QUESTION)
        rows, loops = read_rows(StepRow, content, "rows", path), read_rows(LoopRow, content, "loops", path)
        return cls(read_about(StepAbout, content, path), rows, loops)
