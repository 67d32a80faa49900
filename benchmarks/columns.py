# SPDX-License-Identifier: Apache-2.0
"""What the tables of all benchmarks share: columns that say once what they are called and what of a row they show.

A row that has no time, because it is wrong or could not run, has its state in the place of the first number, and only
the numbers that say why.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

Cell = Callable[[Any], str]
Columns = Mapping[str, Cell]
"""By the column's name, what it shows of a row."""

OK = "ok"


def shown(attribute: str, form: str, factor: float = 1) -> Cell:
    """A number of a row, times a factor; nothing where there is none."""

    def cell(row: Any) -> str:
        value = getattr(row, attribute)
        return "" if value is None else f"{value * factor:{form}}"

    return cell


def own_in_bold(row: Any) -> RenderableType:
    """The implementation, in bold if it is ours."""
    from rich.text import Text

    return Text(row.implementation, "bold" if row.ours else "")


def rows_table(
    rows: Iterable[Any],
    texts: Mapping[str, Callable[[Any], RenderableType]],
    numbers: Columns,
    *,
    title: str | Text | None = None,
    reasons: Collection[str] = (),
    section: Cell | None = None,
) -> Table:
    """A line for every row.

    Args:
        rows: They may have a `state`.
        texts: The first columns.
        numbers: The columns behind them, to the right.
        title: Of the table.
        reasons: Those of `numbers` that rows without a time have, too.
        section: What begins a section where it changes from row to row.
    """
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in texts:
        table.add_column(name, no_wrap=section is None)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    before: str | None = None
    for row in rows:
        begins = section is not None and before != (before := section(row))
        if begins:
            table.add_section()
        cells = [text(row) for text in texts.values()]
        if section is not None and not begins:
            cells[0] = ""
        table.add_row(*cells, *_numbers(row, numbers, reasons))
    return table


def _numbers(row: Any, numbers: Columns, reasons: Collection[str]) -> list[str]:
    state = getattr(row, "state", OK)
    if state == OK:
        return [cell(row) for cell in numbers.values()]
    cells = [cell(row) if name in reasons else "" for name, cell in numbers.items()]
    return [state, *cells[1:]]


def machine(about: Mapping[str, Any], packages: Iterable[str], *more: str) -> str:
    """GPU, driver, versions and commit in one line.

    Args:
        about: Of a report.
        packages: Whose versions are shown, if they are known.
        more: Further parts.
    """
    versions = about.get("versions", {})
    parts = [about.get("gpu") or "no GPU", f"driver {about.get('driver')}"]
    parts += [f"{name} {versions[name]}" for name in packages if name in versions]
    parts += [f"cuDNN {about['cudnn']}"] if about.get("cudnn") else []
    parts += [*more, f"commit {about.get('commit')}"]
    product = about.get("ceiling_tflops")
    return ", ".join([*parts, *([] if product is None else [f"matrix product {product} TFLOP/s"])])


def failures(rows: Iterable[Any], named: Cell) -> list[str]:
    """Why rows have no time, a line each that begins with what names the row."""
    return [f"  {named(row)}: {row.state.upper()}, {row.note}" for row in rows if row.state != OK]
