# SPDX-License-Identifier: Apache-2.0
"""What the pictures of all benchmarks share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vorta_trt.model.files import new_file
from vorta_trt.plugins.extras import import_extra

OUR_COLOUR, PEER_COLOUR = "#2e7d32", "#78909c"


def timed(rows: Iterable[Any], time: str) -> list[Any]:
    """The rows that have a time; `time` is the name of its attribute.

    Raises:
        ValueError: No row has a time.
    """
    found = [row for row in rows if row.state == "ok" and getattr(row, time) is not None]
    if not found:
        raise ValueError("nothing to plot: no row of the report was timed; its notes say why")
    return found


def new_figure(width: float, height: float) -> Any:
    """An empty figure of matplotlib, in inches."""
    return import_extra("matplotlib.figure", "plot").Figure(figsize=(width, height), layout="constrained")


def stacked_bars(
    panel: Any, names: Sequence[str], parts: Mapping[str, Sequence[float]], colours: Mapping[str, str]
) -> None:
    """Draws a horizontal bar for every name, with its parts one after the other."""
    starts = [0.0] * len(names)
    for part, widths in parts.items():
        panel.barh(names, widths, left=starts, color=colours[part], label=part)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    panel.legend(fontsize="x-small", loc="lower right")


def annotate_ends(panel: Any, ends: Sequence[float], labels: Sequence[str]) -> None:
    """Texts at the ends of horizontal bars, the first bar at the top."""
    for position, (end, label) in enumerate(zip(ends, labels, strict=True)):
        panel.annotate(label, (end, position), (3, 0), textcoords="offset points", va="center", fontsize="x-small")
    panel.invert_yaxis()
    panel.margins(x=0.2)


def save(figure: Any, path: Path, about: Mapping[str, Any], what: str) -> Path:
    """Writes a figure under a title of the GPU and what is shown. The suffix of `path` is the format."""
    figure.suptitle(f"{about.get('gpu') or 'no GPU'}: {what}", fontsize="medium")
    with new_file(path) as unfinished:
        figure.savefig(unfinished, dpi=150)
    return path
