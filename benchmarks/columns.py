# SPDX-License-Identifier: Apache-2.0
"""What the tables of all benchmarks share: columns, each with its name and with what it shows of a row.

A row that has no time, because it is wrong or could not run, shows its state in place of the first number, and of the
other numbers only those that explain it.
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
"""What each column shows of a row, by the column's name."""

OK = "ok"


def shown(attribute: str, form: str, factor: float = 1) -> Cell:
    """A cell with a number of a row, times a factor; empty if the row has none."""

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
    """A table with a line for every row.

    Args:
        rows: The rows, which may have a `state`.
        texts: The columns of text, which come first.
        numbers: The columns of numbers, which come after them and are aligned to the right.
        title: Title of the table.
        reasons: Names of those `numbers` that rows without a time show, too.
        section: Gives the section of a row; a new section begins where it changes.
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
        about: The `about` of a report.
        packages: Names of the packages whose versions are shown, if they are known.
        more: Further parts of the line.
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
