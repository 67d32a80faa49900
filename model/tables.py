# SPDX-License-Identifier: Apache-2.0
"""Tables in plain text, laid out by rich: for reports that are text, and for terminals, pipes and files alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import StringIO

WIDE = 1000  # columns: no cell is wrapped


def table_lines(columns: Sequence[str], rows: Iterable[Sequence[str]], left: int = 0) -> list[str]:
    """A line per row, below one with the names of the columns.

    Args:
        columns: Names of the columns; all empty leaves the first line out.
        rows: Cells; a row may be shorter than `columns`.
        left: How many columns are aligned to the left, the first ones or, if negative, the last; others to the right.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=any(columns))
    for index, name in enumerate(columns):
        is_left = index < left if left >= 0 else index >= len(columns) + left
        table.add_column(Text(name), justify="left" if is_left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    text = StringIO()
    Console(file=text, width=WIDE, color_system=None).print(table)
    return [line.rstrip() for line in text.getvalue().splitlines()]


def percent(share: float) -> str:
    """A share as a cell: "12.5%"."""
    return f"{100 * share:.1f}%"
