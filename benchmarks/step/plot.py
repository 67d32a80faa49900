# SPDX-License-Identifier: Apache-2.0
"""A report of `vorta-trt bench step` as a picture: seconds of a pass by what the kernels do, and whole schedules."""

from __future__ import annotations

from pathlib import Path

from vorta_trt.benchmarks.step.measure import REST
from vorta_trt.benchmarks.step.report import StepReport
from vorta_trt.benchmarks.step.table import routes_of
from vorta_trt.model.files import new_file
from vorta_trt.plugins.extras import import_extra

COLOURS = {"attention": "#2e7d32", "matrix products": "#37474f", REST: "#bdbdbd"}
WHOLE = "#2e7d32"


def plot_report(report: StepReport, path: Path) -> Path:
    """Left, a bar per row; right, a bar per loop. The suffix of `path` is the format."""
    rows = [row for row in report.rows if row.state == "ok" and row.median is not None]
    if not rows:
        raise ValueError("nothing to plot: no row of the report was timed; its notes say why")
    loops = [loop for loop in report.loops if loop.times_dense is not None]
    height = 1.5 + 0.35 * max(len(rows), len(loops))
    figure = import_extra("matplotlib.figure", "plot").Figure(
        figsize=(14 if loops else 9, height), layout="constrained"
    )
    panels = figure.subplots(1, 2 if loops else 1, squeeze=False)[0]
    names = [f"{row.implementation}, {row.mode}, {routes_of(row)}" for row in rows]
    starts = [0.0] * len(rows)
    for kind, colour in COLOURS.items():
        # Without a GPU there are no shares: the whole bar is of the last kind then.
        shares = [row.kernel_shares.get(kind, 0.0) if row.kernel_shares else float(kind == REST) for row in rows]
        widths = [(row.median or 0.0) * share for row, share in zip(rows, shares, strict=True)]
        panels[0].barh(names, widths, left=starts, color=colour, label=kind)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    for position, row in enumerate(rows):
        label = f"{row.median:.2f} s" + (f", {row.times_dense:.2f} x" if row.times_dense else "")
        end = (row.median or 0.0, position)
        panels[0].annotate(label, end, (3, 0), textcoords="offset points", va="center", fontsize="x-small")
    panels[0].set_xlabel("seconds of a pass")
    panels[0].legend(fontsize="x-small", loc="lower right")
    panels[0].invert_yaxis()
    panels[0].margins(x=0.2)
    if loops:
        names = [f"{loop.name}, {loop.routes}" for loop in loops]
        bars = panels[1].barh(names, [loop.times_dense for loop in loops], color=WHOLE)
        panels[1].bar_label(bars, labels=[f"{loop.seconds:.0f} s" for loop in loops], fontsize="x-small", padding=2)
        panels[1].set_xlabel("times faster than the dense schedule")
        panels[1].invert_yaxis()
        panels[1].margins(x=0.15)
    figure.suptitle(f"{report.about.get('gpu') or 'no GPU'}: {report.about['case']}", fontsize="medium")
    with new_file(path) as unfinished:
        figure.savefig(unfinished, dpi=150)
    return path
