# SPDX-License-Identifier: Apache-2.0
"""A report of `vorta-trt bench step` as tables for people."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vorta_trt.benchmarks.columns import Cell, Columns, failures, machine, rows_table, shown
from vorta_trt.benchmarks.step.cases import DENSE
from vorta_trt.benchmarks.step.measure import ATTENTION, PRODUCTS, REST
from vorta_trt.benchmarks.step.models import DIFFUSERS, TORCH
from vorta_trt.benchmarks.step.report import LoopRow, StepReport, StepRow

if TYPE_CHECKING:
    from rich.table import Table


def routes_of(row: StepRow) -> str:
    """The routes as they are shown."""
    own = row.routes == DENSE and row.implementation not in (TORCH, DIFFUSERS)
    return f"{DENSE}, our kernels" if own else row.routes


def _share(kind: str) -> Cell:
    def cell(row: StepRow) -> str:
        return f"{100 * row.kernel_shares[kind]:.0f} %" if kind in row.kernel_shares else ""

    return cell


STEP: dict[str, Callable[[StepRow], str]] = {
    "implementation": lambda row: row.implementation,
    "mode": lambda row: row.mode,
    "coreset/sliding": routes_of,
}
STEP_NUMBERS: Columns = {
    "cold s": shown("cold", ".1f"),
    "s": shown("median", ".3f"),
    "min": shown("minimum", ".3f"),
    "TFLOP/s": shown("tflops", ".0f"),
    "x cuDNN": shown("times_dense", ".2f"),
    "x own": shown("times_own_dense", ".2f"),
    "peak GiB": shown("peak_memory_gib", ".1f"),
    "attention": _share(ATTENTION),
    "products": _share(PRODUCTS),
    "other": _share(REST),
}
LOOP: dict[str, Callable[[LoopRow], str]] = {
    "loop": lambda loop: loop.name,
    "coreset/sliding": lambda loop: loop.routes,
}
LOOP_NUMBERS: Columns = {
    "steps": lambda loop: f"{loop.measured} of {loop.steps}" if loop.extrapolated else str(loop.steps),
    "computed": lambda loop: str(loop.computed),
    "passes": lambda loop: str(loop.passes),
    "step s": shown("computed_seconds", ".3f"),
    "reused s": shown("reused_seconds", ".4f"),
    "total s": shown("seconds", ".1f"),
    "x dense": shown("times_dense", ".2f"),
}


def headline(report: StepReport) -> str:
    """The machine and the model in two lines."""
    about = report.about
    return (
        f"{machine(about, ('torch', 'diffusers', 'tensorrt'))}\n{about['case']}, "
        f"{about['layers']} layers, {about['heads']} heads, {about['weights']}, batch 1; a pass is one call of the "
        f"transformer; x cuDNN: times faster than torch, dense with cuDNN's attention, in the same mode (an engine: in "
        f"the last mode); x own: than its own dense row: routing alone"
    )


def step_table(report: StepReport) -> Table:
    """One pass of every implementation."""
    return rows_table(report.rows, STEP, STEP_NUMBERS, title="one pass")


def loop_table(report: StepReport) -> Table:
    """The sampling loops."""
    return rows_table(report.loops, LOOP, LOOP_NUMBERS, title="sampling")


def remarks(report: StepReport) -> list[str]:
    """Why a row has no time, and what loops were compared with."""
    lines = failures(report.rows, lambda row: f"{row.implementation}, {row.mode}, {row.routes}")
    notes = dict.fromkeys(f"  {loop.name}: {loop.note}" for loop in report.loops if loop.note)
    return [*lines, *notes]
