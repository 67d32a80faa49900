# SPDX-License-Identifier: Apache-2.0
"""A report of `vorta-trt bench blocks` as a table for people and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vorta_trt.benchmarks.blocks.report import BlockReport, BlockRow
from vorta_trt.benchmarks.columns import Columns, failures, machine, own_in_bold, rows_table, shown
from vorta_trt.benchmarks.picture import OUR_COLOUR, PEER_COLOUR, new_figure, save, timed

if TYPE_CHECKING:
    from rich.table import Table

NUMBERS: Columns = {
    "ms": shown("milliseconds", ".3f"),
    "min": shown("minimum", ".3f"),
    "p90": shown("p90", ".3f"),
    "TFLOP/s": shown("tflops", ".0f"),
    "TB/s": shown("terabytes_per_second", ".2f"),
    "x peer": shown("times_peer", ".2f"),
    "error": shown("relative_error", ".1e"),
}


def headline(report: BlockReport) -> str:
    """The machine in one line, and what the columns mean."""
    backends = ", ".join(f"{key} {value}" for key, value in report.about.get("linear_backends", {}).items())
    return (
        f"{machine(report.about, ('torch',), f'linear layers: {backends}')}\nms: median; TB/s: what a call reads and "
        f"writes at least; x peer: times faster than the first peer; error: relative, against float32 or float64"
    )


def block_table(report: BlockReport) -> Table:
    """All rows, a section for each case."""
    texts = {"case": lambda row: row.case, "implementation": own_in_bold}
    return rows_table(report.rows, texts, NUMBERS, reasons=("error",), section=lambda row: row.case)


def remarks(report: BlockReport) -> list[str]:
    """Why a row has no time."""
    return failures(report.rows, lambda row: f"{row.case}, {row.implementation}")


def plot_report(report: BlockReport, path: Path) -> Path:
    """A bar for the time of every row."""
    rows: list[BlockRow] = timed(report.rows, "milliseconds")
    figure = new_figure(11, 1 + 0.3 * len(rows))
    panel = figure.subplots()
    times = [row.milliseconds for row in rows]
    bars = panel.barh(range(len(rows)), times, color=[OUR_COLOUR if row.ours else PEER_COLOUR for row in rows])
    panel.bar_label(bars, labels=[f"{time:.3g}" for time in times], fontsize="x-small", padding=1)
    panel.set_yticks(range(len(rows)), [f"{row.case}: {row.implementation}" for row in rows], fontsize="x-small")
    panel.invert_yaxis()
    panel.set_xlabel("ms")
    return save(figure, path, report.about, "operators of a block; green is ours")
