# SPDX-License-Identifier: Apache-2.0
"""A report as a picture: useful TFLOP/s per case and branch, peers beside, with the matrix product's ceiling."""

from __future__ import annotations

from pathlib import Path

from vorta_trt.benchmarks.cases import BRANCHES
from vorta_trt.benchmarks.picture import new_figure, save, timed
from vorta_trt.benchmarks.report import Report

COLUMNS = 2  # panels beside each other
OUR_COLOURS = ("#2e7d32", "#81c784", "#00695c", "#80cbc4")
PEER_COLOURS = ("#37474f", "#78909c", "#6a1b9a", "#ba68c8", "#ef6c00", "#ffb74d", "#8d6e63", "#bdbdbd")


def plot_report(report: Report, path: Path) -> Path:
    """One panel per case; the figure on a bar is its time."""
    cases = report.cases()
    names = list(dict.fromkeys(row.implementation for row in timed(report.rows, "milliseconds")))
    ours = [name for name in names if any(row.ours for row in report.rows if row.implementation == name)]
    palette = {name: OUR_COLOURS[index % len(OUR_COLOURS)] for index, name in enumerate(ours)}
    others = [name for name in names if name not in palette]
    palette |= {name: PEER_COLOURS[index % len(PEER_COLOURS)] for index, name in enumerate(others)}
    columns = min(COLUMNS, len(cases))
    lines = -(-len(cases) // columns)
    figure = new_figure(8 * columns, 1 + 3.4 * lines)
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
    ceiling = report.about.get("ceiling_tflops")
    for panel in panels.flat[len(cases) :]:
        panel.set_visible(False)
    for panel, (case, rows) in zip(panels.flat, cases.items(), strict=False):
        position, ticks = 0.0, {}
        for branch in BRANCHES:
            drawn = [row for row in rows if row.branch == branch and row.useful_tflops is not None]
            for index, row in enumerate(drawn):
                bar = panel.bar(position + index, row.useful_tflops, color=palette[row.implementation], width=0.9)
                panel.bar_label(bar, labels=[f"{row.milliseconds:.3g}"], fontsize="x-small", padding=1)
            if drawn:
                ticks[branch] = position + (len(drawn) - 1) / 2
                position += len(drawn) + 1
        if ceiling is not None:
            panel.axhline(ceiling, color="black", linewidth=0.8, linestyle="--")
        panel.set_xticks(list(ticks.values()), list(ticks))
        panel.set_title(case, fontsize="small")
        panel.set_ylabel("useful TFLOP/s")
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=palette[name], label=name) for name in (*ours, *others)]
    figure.legend(handles=handles, loc="outside lower center", ncols=2 * columns, frameon=False, fontsize="small")
    return save(figure, path, report.about, "useful TFLOP/s, ms on the bars; dashed: the matrix product")
