# SPDX-License-Identifier: Apache-2.0
"""A report of `vorta-trt bench step` as a picture: seconds of a pass by what the kernels do, and whole schedules."""

from __future__ import annotations

from pathlib import Path

from vorta_trt.benchmarks.picture import OUR_COLOUR, annotate_ends, new_figure, save, stacked_bars, timed
from vorta_trt.benchmarks.step.measure import ATTENTION, PRODUCTS, REST
from vorta_trt.benchmarks.step.report import StepReport, StepRow
from vorta_trt.benchmarks.step.table import routes_of

COLOURS = {ATTENTION: OUR_COLOUR, PRODUCTS: "#37474f", REST: "#bdbdbd"}


def plot_report(report: StepReport, path: Path) -> Path:
    """Left, a bar per row; right, a bar per loop."""
    rows: list[StepRow] = timed(report.rows, "median")
    loops = [loop for loop in report.loops if loop.times_dense is not None]
    figure = new_figure(14 if loops else 9, 1.5 + 0.35 * max(len(rows), len(loops)))
    panels = figure.subplots(1, 2 if loops else 1, squeeze=False)[0]
    names = [f"{row.implementation}, {row.mode}, {routes_of(row)}" for row in rows]
    stacked_bars(panels[0], names, {kind: [_seconds(row, kind) for row in rows] for kind in COLOURS}, COLOURS)
    labels = [f"{row.median:.2f} s" + (f", {row.times_dense:.2f} x" if row.times_dense else "") for row in rows]
    annotate_ends(panels[0], [row.median or 0.0 for row in rows], labels)
    panels[0].set_xlabel("seconds of a pass")
    if loops:
        names = [f"{loop.name}, {loop.routes}" for loop in loops]
        bars = panels[1].barh(names, [loop.times_dense for loop in loops], color=OUR_COLOUR)
        panels[1].bar_label(bars, labels=[f"{loop.seconds:.0f} s" for loop in loops], fontsize="x-small", padding=2)
        panels[1].set_xlabel("times faster than the dense schedule")
        panels[1].invert_yaxis()
        panels[1].margins(x=0.15)
    return save(figure, path, report.about, report.about["case"])


def _seconds(row: StepRow, kind: str) -> float:
    """Seconds of one kind of kernels. Without a GPU there are no shares: all seconds count as the last kind."""
    share = row.kernel_shares.get(kind, 0.0) if row.kernel_shares else float(kind == REST)
    return (row.median or 0.0) * share
