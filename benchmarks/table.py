# SPDX-License-Identifier: Apache-2.0
"""A report of `vorta-trt bench attention` as tables for people: one per case, with more about rows below it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vorta_trt.benchmarks.columns import OK, Columns, machine, own_in_bold, rows_table, shown
from vorta_trt.benchmarks.report import Report, Row

if TYPE_CHECKING:
    from rich.table import Table

NUMBERS: Columns = {
    "ms": shown("milliseconds", ".3f"),
    "min": shown("minimum", ".3f"),
    "p90": shown("p90", ".3f"),
    "TFLOP/s": shown("useful_tflops", ".0f"),
    "% ceil": shown("ceiling_share", ".0f", 100),
    "x own": shown("times_own_dense", ".2f"),
    "x cuDNN": shown("times_cudnn", ".2f"),
    "error": shown("relative_error", ".1e"),
}


def headline(report: Report) -> str:
    """The machine in one line, and what the columns mean."""
    return (
        f"{machine(report.about, ('torch', 'triton', 'flash-attn-4'))}\nms: "
        f"median; TFLOP/s: useful ones; % ceil: of the matrix product; x own, x cuDNN: times faster than our own dense "
        f"branch and than cuDNN's; error: relative, against float32"
    )


def case_table(rows: Sequence[Row]) -> Table:
    """The rows of one case."""
    from rich.text import Text

    texts = {"branch": lambda row: row.branch, "implementation": own_in_bold}
    return rows_table(rows, texts, NUMBERS, title=Text(rows[0].case), reasons=("error",))


def remarks(rows: Sequence[Row]) -> list[str]:
    """Mixed routes against the sum of their parts, why a row has no time, and notes."""
    lines = []
    for row in rows:
        where = f"  {row.branch}, {row.implementation}:"
        for name in ("prorated", "separate"):
            if (factor := row.parts.get(f"over_{name}")) is not None:
                total = row.parts[f"{name}_milliseconds"]
                lines.append(f"{where} {factor:.3f} x the sum of its {name} parts ({total:.3f} ms)")
        if row.note or row.state != OK:
            lines.append(f"{where} {'' if row.state == OK else f'{row.state.upper()}, '}{row.note}")
    return lines
