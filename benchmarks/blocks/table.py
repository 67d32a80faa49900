# SPDX-License-Identifier: Apache-2.0
"""A report of `vorta-trt bench blocks` as a table for people and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vorta_trt.benchmarks.blocks.report import BlockReport, BlockRow
from vorta_trt.benchmarks.table import number
from vorta_trt.model.files import new_file
from vorta_trt.plugins.extras import import_extra

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("ms", "min", "p90", "TFLOP/s", "TB/s", "x peer", "error")
OUR_COLOUR, PEER_COLOUR = "#2e7d32", "#78909c"


def headline(report: BlockReport) -> str:
    """The machine in one line, and what the columns mean."""
    about = report.about
    backends = ", ".join(f"{key} {value}" for key, value in about.get("linear_backends", {}).items())
    parts = [
        about.get("gpu") or "no GPU",
        f"driver {about.get('driver')}",
        f"torch {about.get('versions', {}).get('torch')}",
        f"linear layers: {backends}",
        f"commit {about.get('commit')}",
        f"matrix product {about.get('ceiling_tflops')} TFLOP/s",
    ]
    return (
        f"{', '.join(parts)}\nms: median; TB/s: what a call reads and writes at least; x peer: times faster than the "
        f"first peer; error: relative, against float32 or float64"
    )


def block_table(report: BlockReport) -> Table:
    """All rows, a section for each case."""
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for name in ("case", "implementation"):
        table.add_column(name)
    for name in COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    shown = ""
    for row in report.rows:
        if row.case != shown:
            table.add_section()
        table.add_row(
            "" if row.case == shown else row.case, Text(row.implementation, "bold" if row.ours else ""), *_cells(row)
        )
        shown = row.case
    return table


def _cells(row: BlockRow) -> tuple[str, ...]:
    if row.milliseconds is None:
        return (row.state,)
    return (
        f"{row.milliseconds:.3f}",
        number(row.minimum, ".3f"),
        number(row.p90, ".3f"),
        number(row.tflops, ".0f"),
        number(row.terabytes_per_second, ".2f"),
        number(row.times_peer, ".2f"),
        number(row.relative_error, ".1e"),
    )


def remarks(report: BlockReport) -> list[str]:
    """Why a row has no time."""
    return [
        f"  {row.case}, {row.implementation}: {row.state.upper()}, {row.note}"
        for row in report.rows
        if row.state != "ok"
    ]


def plot_report(report: BlockReport, path: Path) -> Path:
    """A bar for the time of every row. The suffix of `path` is the format."""
    timed = [row for row in report.rows if row.milliseconds is not None]
    if not timed:
        raise ValueError("nothing to plot: no row of the report was timed; its notes say why")
    figure = import_extra("matplotlib.figure", "plot").Figure(figsize=(11, 1 + 0.3 * len(timed)), layout="constrained")
    panel = figure.subplots()
    names = [f"{row.case}: {row.implementation}" for row in timed]
    bars = panel.barh(
        range(len(timed)),
        [row.milliseconds for row in timed],
        color=[OUR_COLOUR if row.ours else PEER_COLOUR for row in timed],
    )
    panel.bar_label(bars, labels=[f"{row.milliseconds:.3g}" for row in timed], fontsize="x-small", padding=1)
    panel.set_yticks(range(len(timed)), names, fontsize="x-small")
    panel.invert_yaxis()
    panel.set_xlabel("ms")
    panel.set_title(f"{report.about.get('gpu') or 'no GPU'}: operators of a block; green is ours", fontsize="medium")
    with new_file(path) as unfinished:
        figure.savefig(unfinished, dpi=150)
    return path
