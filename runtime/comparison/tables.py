# SPDX-License-Identifier: Apache-2.0
"""A comparison as tables: a row per sample, and a summary; for a terminal, as Markdown or as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from vorta_trt.model.files import FileKind, write_text
from vorta_trt.runtime.comparison.report import CompareReport, PairReport

if TYPE_CHECKING:
    from rich.table import Table

FORMATS = (".md", ".csv")
FLOOR = "floor"
_Value = Callable[[PairReport], float | None]
_METRICS: dict[str, tuple[_Value, _Value | None, int]] = {  # name -> value, value of the worst frame, decimals
    "PSNR dB": (lambda pair: pair.psnr, lambda pair: pair.worst_frame_psnr, 2),
    "SSIM": (lambda pair: pair.ssim, lambda pair: pair.worst_frame_ssim, 4),
    "LPIPS": (lambda pair: pair.lpips, None, 4),
}
_TOTALS: dict[str, Callable[[CompareReport], float | None]] = {
    "PSNR dB": lambda report: report.psnr,
    "SSIM": lambda report: report.ssim,
    "LPIPS": lambda report: report.lpips,
}
SUMMARY = ("", "all", "median", "least alike", "most alike", FLOOR, "beyond the floor")
SAMPLE = ("sample", "frames", "size")  # the columns that every table of samples begins with
_BEGINNINGS = (f"|  | {' | '.join(SUMMARY[1:])}".encode(), ",".join(SAMPLE).encode())


def _is_table(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(max(map(len, _BEGINNINGS))).startswith(_BEGINNINGS)


TABLE = FileKind("table of `vorta-trt compare`", _is_table)


def sample_columns(report: CompareReport) -> list[str]:
    """The column headers of `sample_rows`."""
    columns = [*SAMPLE]
    for metric in _metrics(report):
        worst = _METRICS[metric][1]
        columns += [metric, *(() if worst is None else ("worst",)), *(() if report.floor is None else (FLOOR,))]
    return columns


def sample_rows(report: CompareReport) -> list[list[str]]:
    """One row per pair, and one for the whole set if there are several pairs."""
    floors = {} if report.floor is None else {pair.name: pair for pair in report.floor.pairs}
    rows = []
    for pair in report.pairs:
        name = pair.name if pair.prompt is None else f"{pair.name} {pair.prompt}"
        row = [name, str(pair.frames), f"{pair.height}x{pair.width}"]
        for metric in _metrics(report):
            value, worst, decimals = _METRICS[metric]
            row += [_number(part(pair), decimals) for part in (value, worst) if part is not None]
            if report.floor is not None:
                row.append(_number(value(floors[pair.name]), decimals))
        rows.append(row)
    if len(report.pairs) > 1:
        row = ["all", str(sum(pair.frames for pair in report.pairs)), ""]
        for metric in _metrics(report):
            _, worst, decimals = _METRICS[metric]
            row.append(_number(_TOTALS[metric](report), decimals))
            if worst is not None:
                least = [found for pair in report.pairs if (found := worst(pair)) is not None]
                row.append(_number(min(least), decimals))
            if report.floor is not None:
                row.append(_number(_TOTALS[metric](report.floor), decimals))
        rows.append(row)
    return rows


def summary_rows(report: CompareReport) -> list[list[str]]:
    """One row per metric: statistics over all pairs, and the distance beyond the noise floor.

    "beyond the floor" is the difference in dB for PSNR, and the ratio of 1 - SSIM and of LPIPS to those of the floor.
    """
    rows = []
    for metric in _metrics(report):
        value, _, decimals = _METRICS[metric]
        values = [found for pair in report.pairs if (found := value(pair)) is not None]
        spread = [median(values), *sorted((min(values), max(values)), reverse=metric == "LPIPS")]
        total = _TOTALS[metric](report)
        floor = None if report.floor is None else _TOTALS[metric](report.floor)
        row = [metric, *(_number(number, decimals) for number in (total, *spread, floor))]
        rows.append([*row, _beyond(metric, total, floor)])
    return rows


def compare_table(report: CompareReport) -> Table:
    """`sample_rows` for a terminal."""
    title = f"{report.first} against {report.second}"
    if report.floor is not None:
        title += f"; {FLOOR}: {report.floor.second}"
    rows = sample_rows(report)
    return _rich(title, sample_columns(report), rows, section=len(report.pairs) if len(rows) > len(report.pairs) else 0)


def summary_table(report: CompareReport) -> Table:
    """`summary_rows` for a terminal."""
    return _rich("summary", SUMMARY, summary_rows(report))


def check_table(path: Path) -> None:
    """Raises ValueError for a file that `write_table` cannot write."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: must end in {' or '.join(FORMATS)}")


def write_table(path: Path, report: CompareReport) -> None:
    """Writes both tables as Markdown, or the table of the samples as CSV, depending on the suffix of the path.

    Raises:
        ValueError: The path has another suffix.
        WriteError: The file cannot be written.
    """
    check_table(path)
    columns, rows = sample_columns(report), sample_rows(report)
    if path.suffix.lower() == ".csv":
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows([columns, *rows])
        write_text(path, stream.getvalue())
        return
    write_text(path, f"{_markdown(SUMMARY, summary_rows(report))}\n{_markdown(columns, rows)}")


def _metrics(report: CompareReport) -> list[str]:
    return [name for name in _METRICS if name != "LPIPS" or report.lpips_note is None]


def _number(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def _beyond(metric: str, value: float | None, floor: float | None) -> str:
    if value is None or floor is None:
        return "-"
    if metric == "PSNR dB":
        return "-" if math.isinf(floor) else f"{floor - value:.2f} dB"
    distance, least = (1 - value, 1 - floor) if metric == "SSIM" else (value, floor)
    return "-" if least <= 0 else f"{distance / least:.1f} x"


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        escaped = (cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
        return f"| {' | '.join(escaped)} |\n"

    rule = [" --- ", *[" ---: "] * (len(columns) - 1)]
    return line(columns) + f"|{'|'.join(rule)}|\n" + "".join(map(line, rows))


def _rich(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], section: int = 0) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", overflow="fold")
    for number, row in enumerate(rows):
        if section and number == section:
            table.add_section()
        table.add_row(*map(escape, row))
    return table
