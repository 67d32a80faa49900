# SPDX-License-Identifier: Apache-2.0
"""A report of `vorta-trt bench parallel` as a table and as a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from vorta_trt.benchmarks.columns import Cell, Columns, failures, machine, rows_table, shown
from vorta_trt.benchmarks.parallel.report import ParallelReport, ParallelRow
from vorta_trt.benchmarks.picture import annotate_ends, new_figure, save, stacked_bars, timed

if TYPE_CHECKING:
    from rich.table import Table

MILLI = 1e3
COLOURS = {"computing": "#2e7d32", "waiting": "#f9a825", "exchange": "#37474f", "overlapped": "#7cb342"}


def _exchange(name: str) -> Cell:
    def cell(row: ParallelRow) -> str:
        seconds = row.exchanges.get(name)
        return "" if seconds is None else f"{MILLI * seconds:.1f}"

    return cell


PLACES: dict[str, Callable[[ParallelRow], str]] = {
    "routes": lambda row: row.routes,
    "GPUs": lambda row: str(row.gpus),
    "passes": lambda row: str(row.passes),
    "heads placed": lambda row: row.placement,
    "exchange": lambda row: row.exchange,
}
NUMBERS: Columns = {
    "ms": shown("median", ".1f", MILLI),
    "min": shown("minimum", ".1f", MILLI),
    "x": shown("speedup", ".2f"),
    **{f"{name} ms": _exchange(name) for name in ("heads", "tokens", "sample", "guidance")},
    "waiting ms": shown("waiting", ".1f", MILLI),
    "% exchange": shown("exchange_share", ".1f", 100),
    "busiest": shown("busiest", ".3f"),
    "predicted ms": shown("predicted", ".1f", MILLI),
    "differs": shown("difference", ".1e"),
    "own error": shown("own_error", ".1e"),
    "GiB": shown("peak_memory_gib", ".1f"),
}


def headline(report: ParallelReport) -> str:
    """The machine and the model in two lines."""
    about = report.about
    return (
        f"{machine(about, ('torch',))}\n{about['case']}, {about.get('layers')} layers, {about['weights']}, batch 1; ms "
        f"of a pass on the slowest GPU, or of two passes at once; x: times faster than one GPU; exchanges: of the GPU "
        f"that comes last, packing included; waiting: mean of the GPUs; busiest: attention of the busiest GPU over the "
        f"mean; predicted: from the rates of an H100"
    )


def parallel_table(report: ParallelReport) -> Table:
    """A line for every row."""
    reasons = ("differs", "own error")
    return rows_table(report.rows, PLACES, NUMBERS, title="one pass, or two at once", reasons=reasons)


def remarks(report: ParallelReport) -> list[str]:
    """What is wrong with a row."""
    return failures(report.rows, lambda row: f"{row.routes}, {row.gpus} GPUs, {row.passes} passes, {_ways(row)}")


def plot_report(report: ParallelReport, path: Path) -> Path:
    """A bar per row, split into computing, waiting and exchanges, or undivided where they overlap."""
    rows: list[ParallelRow] = timed(report.rows, "median")
    figure = new_figure(9, 1.5 + 0.35 * len(rows))
    panel = figure.subplots()
    names = [f"{row.routes}, {row.gpus} GPUs{', 2 passes' if row.passes > 1 else ''}, {_ways(row)}" for row in rows]
    parts = [_parts(row) for row in rows]
    stacked_bars(panel, names, {kind: [part[kind] for part in parts] for kind in COLOURS}, COLOURS)
    labels = [f"{row.median:.2f} s, {row.speedup:.2f} x" for row in rows]
    annotate_ends(panel, [row.median or 0.0 for row in rows], labels)
    panel.set_xlabel("seconds of a pass, or of two at once")
    return save(figure, path, report.about, report.about["case"])


def _ways(row: ParallelRow) -> str:
    return ", ".join(part for part in (row.placement, row.exchange) if part)


def _parts(row: ParallelRow) -> dict[str, float]:
    if row.exchange_share is None:
        return {**dict.fromkeys(COLOURS, 0.0), "overlapped": row.median or 0.0}
    exchange, waiting = sum(row.exchanges.values()), row.waiting or 0.0
    computing = (row.median or 0.0) - exchange - waiting
    return {"computing": computing, "waiting": waiting, "exchange": exchange, "overlapped": 0.0}
