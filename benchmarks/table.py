# SPDX-License-Identifier: Apache-2.0
"""A report as tables for people: one per case, with what the table has no room for below it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vorta_trt.benchmarks.report import Report, Row

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("ms", "min", "p90", "TFLOP/s", "% ceil", "x own", "x cuDNN", "error")


def headline(report: Report) -> str:
    """The machine in one line, and what the columns mean."""
    about = report.about
    versions = about.get("versions", {})
    parts = [
        about.get("gpu") or "no GPU",
        f"driver {about.get('driver')}",
        *(f"{name} {versions[name]}" for name in ("torch", "triton", "flash-attn-4") if name in versions),
        f"cuDNN {about.get('cudnn')}",
        f"commit {about.get('commit')}",
        f"matrix product {about.get('ceiling_tflops')} TFLOP/s",
    ]
    return (
        f"{', '.join(parts)}\nms: median; TFLOP/s: useful ones; % ceil: of the matrix product; x own, x cuDNN: times "
        f"faster than our own dense branch and than cuDNN's; error: relative, against float32"
    )


def case_table(rows: Sequence[Row]) -> Table:
    """The rows of one case."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(rows[0].case), title_justify="left")
    table.add_column("branch", no_wrap=True)
    table.add_column("implementation", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.branch, Text(row.implementation, "bold" if row.ours else ""), *_cells(row))
    return table


def _cells(row: Row) -> tuple[str, ...]:
    share = None if row.ceiling_share is None else 100 * row.ceiling_share
    return (
        number(row.milliseconds, ".3f") if row.state == "ok" else "-",
        number(row.minimum, ".3f"),
        number(row.p90, ".3f"),
        number(row.useful_tflops, ".0f"),
        number(share, ".0f"),
        number(row.times_own_dense, ".2f"),
        number(row.times_cudnn, ".2f"),
        number(row.relative_error, ".1e"),
    )


def number(value: float | None, form: str) -> str:
    """A number in a cell, which is empty without one."""
    return "" if value is None else f"{value:{form}}"


def remarks(rows: Sequence[Row]) -> list[str]:
    """Mixed routes against the sum of their parts, why a row has no time, and notes."""
    lines = []
    for row in rows:
        where = f"  {row.branch}, {row.implementation}:"
        for name in ("prorated", "separate"):
            if (factor := row.parts.get(f"over_{name}")) is not None:
                total = row.parts[f"{name}_milliseconds"]
                lines.append(f"{where} {factor:.3f} x the sum of its {name} parts ({total:.3f} ms)")
        if row.note or row.state != "ok":
            lines.append(f"{where} {'' if row.state == 'ok' else f'{row.state.upper()}, '}{row.note}")
    return lines
