# SPDX-License-Identifier: Apache-2.0
"""A picture of the layer graph: one box per module, repeated blocks once, our plugin in colour (PNG, SVG or PDF)."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from vorta_trt.engines.layers import UNKNOWN, LayerGraph, readable_bytes
from vorta_trt.engines.modules import Module, ModuleGraph, collapse
from vorta_trt.model.files import new_file
from vorta_trt.plugins.extras import import_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BOX_WIDTH, BOX_HEIGHT = 3.1, 0.62  # inches
COLUMN, ROW = 3.5, 0.95  # inches between the centres of boxes
LEAST_WEIGHT_BYTES = 512  # smaller constants are shapes and axes, not weights
FORMATS = (".png", ".svg", ".pdf")

PLUGIN_COLOUR = "#76b900"
MODULE_COLOUR = "#e8edf3"
LINE_COLOUR = "#5b6770"
BLOCK_COLOUR = "#f7f4e9"


def draw_layers(graph: LayerGraph, path: str | Path, title: str = "") -> Path:
    """Draws `graph` and returns the file. Raises ValueError for an unknown suffix.

    Rows follow the data from top to bottom; a dashed line leads into the next repetition of a block.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: a picture must end in {', '.join(FORMATS)}")
    modules = collapse(graph)
    places = _layout(modules)
    columns = [x for x, _ in places]
    rows = max(y for _, y in places) + 1
    width = max(columns) - min(columns) + COLUMN + 1.2
    figure = import_extra("matplotlib.figure", "plot").Figure(figsize=(width, rows * ROW + 0.8), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlim(min(columns) - COLUMN / 2 - 0.9, max(columns) + COLUMN / 2 + 0.3)
    axes.set_ylim(-rows * ROW + ROW / 2 - 0.1, ROW / 2 + 0.1)
    axes.set_aspect("equal")
    axes.axis("off")
    axes.set_title(title, fontsize=11)
    _draw_blocks(axes, modules, places)
    _draw_edges(axes, modules, places)
    for module, (x, y) in zip(modules.modules, places, strict=True):
        _draw_module(axes, module, x, -y * ROW)
    with new_file(path) as unfinished:
        figure.savefig(unfinished, dpi=130)
    return path


def _layout(graph: ModuleGraph) -> list[tuple[float, int]]:
    """Column centre (inches) and row of each module: below everything that it reads, modules of a block together."""
    count = len(graph.modules)
    reads: dict[int, list[int]] = defaultdict(list)
    for edge in graph.edges:
        if not edge.next_block:
            reads[edge.target].append(edge.source)
    row = _keep_blocks_together(graph, reads, _rows(count, reads))
    by_row: dict[int, list[int]] = defaultdict(list)
    for index in range(count):
        by_row[row[index]].append(index)
    x = [0.0] * count
    for _, members in sorted(by_row.items()):
        wanted = {i: sum(x[s] for s in reads[i]) / len(reads[i]) if reads[i] else 0.0 for i in members}
        for place, index in enumerate(sorted(members, key=lambda i: wanted[i])):
            x[index] = (place - (len(members) - 1) / 2) * COLUMN
    used = {value: place for place, value in enumerate(sorted(set(row)))}
    return [(x[index], used[row[index]]) for index in range(count)]


def _rows(count: int, reads: dict[int, list[int]]) -> list[int]:
    """The length of the longest path to each module."""
    row = [0] * count
    open_modules = list(range(count))
    done: set[int] = set()
    while open_modules:
        ready = [index for index in open_modules if done.issuperset(reads[index])]
        # Blocks that differ from each other can make a cycle when laid over each other: break it at the first module.
        for index in ready or open_modules[:1]:
            row[index] = max((row[source] + 1 for source in reads[index] if source in done), default=0)
            done.add(index)
            open_modules.remove(index)
    return row


def _keep_blocks_together(graph: ModuleGraph, reads: dict[int, list[int]], row: list[int]) -> list[int]:
    """Moves what a repeated block reads above it and the rest below it, so that its frame holds nothing else."""
    everything = range(len(row))
    blocks: dict[str, list[int]] = defaultdict(list)
    for index in sorted(everything, key=lambda i: row[i]):
        if (container := graph.modules[index].container) is not None:
            blocks[container].append(index)
    sections: list[list[int]] = []
    placed: set[int] = set()
    for block in blocks.values():
        needed = _sources(block, reads) - set(block) - placed
        sections += [sorted(i for i in needed if graph.modules[i].container is None), block]
        placed.update(*sections[-2:])
    sections.append([i for i in everything if i not in placed])
    moved, top = list(row), 0
    for section in filter(None, sections):
        lowest = min(row[i] for i in section)
        for i in section:
            moved[i] = top + row[i] - lowest
        top = max(moved[i] for i in section) + 1
    return moved


def _sources(modules: list[int], reads: dict[int, list[int]]) -> set[int]:
    """Everything that `modules` read, directly or through others."""
    found: set[int] = set()
    waiting = list(modules)
    while waiting:
        new = set(reads[waiting.pop()]) - found
        found |= new
        waiting += new
    return found


def _draw_blocks(axes: Axes, graph: ModuleGraph, places: list[tuple[float, int]]) -> None:
    from matplotlib.patches import FancyBboxPatch

    members: dict[str, list[int]] = defaultdict(list)
    for index, module in enumerate(graph.modules):
        if module.container is not None:
            members[module.container].append(index)
    for container, indices in members.items():
        left = min(places[i][0] for i in indices) - BOX_WIDTH / 2 - 0.25
        right = max(places[i][0] for i in indices) + BOX_WIDTH / 2 + 0.1
        top = -min(places[i][1] for i in indices) * ROW + BOX_HEIGHT / 2 + 0.14
        bottom = -max(places[i][1] for i in indices) * ROW - BOX_HEIGHT / 2 - 0.14
        axes.add_patch(
            FancyBboxPatch(
                (left, bottom),
                right - left,
                top - bottom,
                boxstyle="round,pad=0,rounding_size=0.12",
                facecolor=BLOCK_COLOUR,
                edgecolor="#b8ad86",
                linestyle="--",
                zorder=0,
            )
        )
        repeats = max(graph.modules[i].repeats for i in indices)
        axes.text(
            left + 0.08, top - 0.04, f"{container} \u00d7 {repeats}", fontsize=8, va="top", color="#7a6f45", zorder=4
        )


def _draw_edges(axes: Axes, graph: ModuleGraph, places: list[tuple[float, int]]) -> None:
    from matplotlib.patches import FancyArrowPatch

    for edge in graph.edges:
        (x0, row0), (x1, row1) = places[edge.source], places[edge.target]
        y0, y1 = -row0 * ROW, -row1 * ROW
        back = edge.next_block or row1 <= row0
        if back or row1 > row0 + 1:
            # Past other boxes: from side to side, backwards on the left.
            side = -1 if back or x0 < x1 else 1
            start, end = (x0 + side * BOX_WIDTH / 2, y0), (x1 + side * BOX_WIDTH / 2, y1)
            bend = min(0.3, 0.9 / max(abs(y1 - y0), 1))
            curve = f"arc3,rad={-bend if back or side > 0 else bend:.3f}"
        else:
            start, end, curve = (x0, y0 - BOX_HEIGHT / 2), (x1, y1 + BOX_HEIGHT / 2), "arc3,rad=0"
        axes.add_patch(
            FancyArrowPatch(
                start,
                end,
                arrowstyle="-|>",
                mutation_scale=9,
                connectionstyle=curve,
                color="#b8ad86" if back else LINE_COLOUR,
                linestyle="--" if back else "-",
                linewidth=0.8,
                shrinkA=0,
                shrinkB=0,
                zorder=1,
            )
        )


def _draw_module(axes: Axes, module: Module, x: float, y: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(
        FancyBboxPatch(
            (x - BOX_WIDTH / 2, y - BOX_HEIGHT / 2),
            BOX_WIDTH,
            BOX_HEIGHT,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=PLUGIN_COLOUR if module.is_plugin else MODULE_COLOUR,
            edgecolor=LINE_COLOUR,
            linewidth=0.8,
            zorder=2,
        )
    )
    name = module.name or "(no module)"
    axes.text(x, y + 0.12, name, fontsize=8.5, weight="bold", ha="center", va="center", zorder=3)
    axes.text(x, y - 0.14, caption(module), fontsize=7, ha="center", va="center", zorder=3)


def caption(module: Module) -> str:
    """The second line of a box: layers of one repetition, the usual type, weights of one repetition."""
    per_block = -(-module.layers // module.repeats)
    what = "layers" if len(module.kinds) > 1 else next(iter(module.kinds), "layer").lower()
    parts = [f"{per_block} {what}" if not module.is_plugin else "vorta plugin"]
    if module.dtypes and (dtype := module.dtypes.most_common(1)[0][0]) != UNKNOWN:
        parts.append(dtype)
    if module.weight_bytes >= LEAST_WEIGHT_BYTES * module.repeats:
        parts.append(f"weights {readable_bytes(module.weight_bytes // module.repeats)}")
    return " \u00b7 ".join(parts)
