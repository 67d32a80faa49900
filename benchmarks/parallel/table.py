# SPDX-License-Identifier: Apache-2.0
"""A report of `vorta-trt bench parallel` as a table and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vorta_trt.benchmarks.parallel.report import ParallelReport, ParallelRow
from vorta_trt.benchmarks.table import number
from vorta_trt.model.files import new_file
from vorta_trt.plugins.extras import import_extra

if TYPE_CHECKING:
    from rich.table import Table

EXCHANGES = ("heads", "tokens", "sample", "guidance")
COLOURS = {"computing": "#2e7d32", "waiting": "#f9a825", "exchange": "#37474f"}


def headline(report: ParallelReport) -> str:
    """The machine and the model in two lines."""
    about = report.about
    versions = about.get("versions", {})
    return (
        f"{about.get('gpu') or 'no GPU'}, driver {about.get('driver')}, torch {versions.get('torch')}, commit "
        f"{about.get('commit')}\n{about['case']}, {about.get('layers')} layers, {about['weights']}, batch 1; ms of a "
        f"pass on the slowest GPU, or of two passes at once; x: times faster than one GPU; exchanges: of the GPU that "
        f"comes last, packing included; waiting: mean of the GPUs; busiest: attention of the busiest GPU over the "
        f"mean; predicted: from the rates of an H100"
    )


def parallel_table(report: ParallelReport) -> Table:
    """A line for every row."""
    from rich.table import Table

    table = Table(title="one pass, or two at once", title_justify="left")
    for name in ("routes", "GPUs", "passes", "heads placed", "exchange"):
        table.add_column(name, no_wrap=True)
    columns = (
        "ms",
        "min",
        "x",
        *(f"{name} ms" for name in EXCHANGES),
        "waiting ms",
        "share",
        "busiest",
        "predicted ms",
    )
    for name in (*columns, "differs", "own error", "GiB"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(row.routes, str(row.gpus), str(row.passes), row.placement, row.exchange, *_cells(row))
    return table


def _cells(row: ParallelRow) -> tuple[str, ...]:
    return (
        number(_milliseconds(row.median), ".1f") if row.state == "ok" else row.state,
        number(_milliseconds(row.minimum), ".1f"),
        number(row.speedup, ".2f"),
        *(number(_milliseconds(row.exchanges.get(name)), ".1f") for name in EXCHANGES),
        number(_milliseconds(row.waiting), ".1f"),
        f"{100 * (row.exchange_share or 0):.1f} %",
        number(row.busiest, ".3f"),
        number(_milliseconds(row.predicted), ".1f"),
        number(row.difference, ".1e"),
        number(row.own_error, ".1e"),
        number(row.peak_memory_gib, ".1f"),
    )


def remarks(report: ParallelReport) -> list[str]:
    """What is wrong with a row."""
    return [
        f"  {row.routes}, {row.gpus} GPUs, {row.passes} passes, {_ways(row)}: {row.state.upper()}, {row.note}"
        for row in report.rows
        if row.state != "ok"
    ]


def plot_report(report: ParallelReport, path: Path) -> Path:
    """A bar per row, of computing, waiting and exchanges. The suffix of `path` is the format."""
    rows = [row for row in report.rows if row.state == "ok" and row.median is not None]
    if not rows:
        raise ValueError("nothing to plot: no row of the report was timed; its notes say why")
    figure = import_extra("matplotlib.figure", "plot").Figure(figsize=(9, 1.5 + 0.35 * len(rows)), layout="constrained")
    panel = figure.subplots()
    names = [f"{row.routes}, {row.gpus} GPUs{', 2 passes' if row.passes > 1 else ''}, {_ways(row)}" for row in rows]
    starts = [0.0] * len(rows)
    for kind, colour in COLOURS.items():
        widths = [_parts(row)[kind] for row in rows]
        panel.barh(names, widths, left=starts, color=colour, label=kind)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    for position, row in enumerate(rows):
        label = f"{row.median:.2f} s, {row.speedup:.2f} x"
        end = (row.median or 0.0, position)
        panel.annotate(label, end, (3, 0), textcoords="offset points", va="center", fontsize="x-small")
    panel.set_xlabel("seconds of a pass, or of two at once")
    panel.legend(fontsize="x-small", loc="lower right")
    panel.invert_yaxis()
    panel.margins(x=0.2)
    figure.suptitle(f"{report.about.get('gpu') or 'no GPU'}: {report.about['case']}", fontsize="medium")
    with new_file(path) as unfinished:
        figure.savefig(unfinished, dpi=150)
    return path


def _ways(row: ParallelRow) -> str:
    return ", ".join(part for part in (row.placement, row.exchange) if part)


def _parts(row: ParallelRow) -> dict[str, float]:
    exchange, waiting = sum(row.exchanges.values()), row.waiting or 0.0
    return {"computing": (row.median or 0.0) - exchange - waiting, "waiting": waiting, "exchange": exchange}


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds
