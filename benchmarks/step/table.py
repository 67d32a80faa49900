# SPDX-License-Identifier: Apache-2.0
"""A report of `vorta-trt bench step` as tables for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vorta_trt.benchmarks.step.cases import DENSE
from vorta_trt.benchmarks.step.models import DIFFUSERS, TORCH
from vorta_trt.benchmarks.step.report import StepReport, StepRow
from vorta_trt.benchmarks.table import number

if TYPE_CHECKING:
    from rich.table import Table


def headline(report: StepReport) -> str:
    """The machine and the model in two lines."""
    about = report.about
    versions = about.get("versions", {})
    parts = [
        about.get("gpu") or "no GPU",
        f"driver {about.get('driver')}",
        *(f"{name} {versions[name]}" for name in ("torch", "diffusers", "tensorrt") if name in versions),
        f"cuDNN {about.get('cudnn')}",
        f"commit {about.get('commit')}",
    ]
    return (
        f"{', '.join(parts)}\n{about['case']}, {about['layers']} layers, {about['heads']} heads, {about['weights']}, "
        f"batch 1; a pass is one call of the transformer; x cuDNN: times faster than torch, dense with cuDNN's "
        "attention, in the same mode (an engine: in the last mode); x own: than its own dense row: routing alone"
    )


def step_table(report: StepReport) -> Table:
    """One pass of every implementation."""
    from rich.table import Table

    table = Table(title="one pass", title_justify="left")
    for name in ("implementation", "mode", "coreset/sliding"):
        table.add_column(name, no_wrap=True)
    for name in ("cold s", "s", "min", "TFLOP/s", "x cuDNN", "x own", "peak GiB", "attention", "products", "other"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(row.implementation, row.mode, routes_of(row), *_cells(row))
    return table


def routes_of(row: StepRow) -> str:
    """The routes as they are shown."""
    own = row.routes == DENSE and row.implementation not in (TORCH, DIFFUSERS)
    return f"{DENSE}, our kernels" if own else row.routes


def _cells(row: StepRow) -> tuple[str, ...]:
    if row.state != "ok":
        return (row.state,)
    numbers = (
        number(row.cold, ".1f"),
        number(row.median, ".3f"),
        number(row.minimum, ".3f"),
        number(row.tflops, ".0f"),
        number(row.times_dense, ".2f"),
        number(row.times_own_dense, ".2f"),
        number(row.peak_memory_gib, ".1f"),
    )
    return (*numbers, *(f"{100 * share:.0f} %" for share in row.kernel_shares.values()))


def loop_table(report: StepReport) -> Table:
    """The sampling loops."""
    from rich.table import Table

    table = Table(title="sampling", title_justify="left")
    for name in ("loop", "coreset/sliding"):
        table.add_column(name, no_wrap=True)
    for name in ("steps", "computed", "passes", "step s", "reused s", "total s", "x dense"):
        table.add_column(name, justify="right", no_wrap=True)
    for loop in report.loops:
        table.add_row(
            loop.name,
            loop.routes,
            f"{loop.measured} of {loop.steps}" if loop.extrapolated else str(loop.steps),
            str(loop.computed),
            str(loop.passes),
            number(loop.computed_seconds, ".3f"),
            number(loop.reused_seconds, ".4f"),
            number(loop.seconds, ".1f"),
            number(loop.times_dense, ".2f"),
        )
    return table


def remarks(report: StepReport) -> list[str]:
    """Why a row has no time, and what loops were compared with."""
    lines = [
        f"  {row.implementation}, {row.mode}, {row.routes}: {row.state.upper()}, {row.note}"
        for row in report.rows
        if row.state != "ok"
    ]
    notes = dict.fromkeys(f"  {loop.name}: {loop.note}" for loop in report.loops if loop.note)
    return [*lines, *notes]
