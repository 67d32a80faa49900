# SPDX-License-Identifier: Apache-2.0
"""The picture of a route table: shares per step and layer above, layers x heads per step below.

Maps of other figures per step and layer stand between them, where they are given.

Letters: P denoising steps, L layers, N heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vorta_trt.model.files import check_output, new_file
from vorta_trt.model.geometry import Branch
from vorta_trt.plugins.extras import import_extra

# Okabe-Ito: told apart with every common form of colour blindness, and by lightness in grey print.
COLOURS = {Branch.FULL: "#D55E00", Branch.CORESET: "#F0E442", Branch.SLIDING: "#0072B2"}
COLUMNS = 10  # panels beside each other, at most
MAPS_HEIGHT, PANEL = 3.0, 1.6  # inches


class Routes(Protocol):
    """What is drawn: a `RouteTable`, whose module imports this one."""

    @property
    def timesteps(self) -> tuple[float, ...]:
        """P timesteps."""

    @property
    def routes(self) -> Tensor:
        """Branch ids [P, L, N]."""

    def takes(self, branch: Branch) -> Tensor:
        """Which heads take the branch: bool [P, L, N]."""

    def shares(self) -> dict[str, float]:
        """Share of heads by branch."""

    def shares_per_step_and_layer(self) -> dict[str, Tensor]:
        """Share of heads by branch: [P, L] each."""

    def saved_per_step(self) -> Tensor:
        """Share of dense attention's FLOPs that routing saves: [P]."""


def check_picture(path: Path) -> None:
    """Raises ValueError, WriteError or MissingExtraError if `draw_routes` could not write `path`."""
    known = import_extra("matplotlib.backend_bases", "plot").FigureCanvasBase.get_supported_filetypes()
    if path.suffix.removeprefix(".").lower() not in known:
        raise ValueError(f"picture {path}: its suffix must be one of {', '.join(sorted(known))}; use .png")
    check_output(path)


def draw_routes(
    table: Routes, path: str | Path, max_panels: int, more: Mapping[str, Tensor] | None = None, unit: str = ""
) -> Path:
    """Draws `table` into a file.

    Args:
        table: Routes to draw.
        path: File to write; its suffix is the format (.png, .svg, .pdf).
        max_panels: Largest number of panels of layers x heads; a longer schedule shows evenly spaced steps, the first
            and last included.
        more: Maps by title, [P, L] each, which are drawn with one scale of colours.
        unit: Unit of the values in these maps.

    Returns:
        The file.

    Raises:
        ValueError: max_panels is below 1, or the suffix is no format.
        WriteError: The file cannot be written.
    """
    if max_panels < 1:
        raise ValueError(f"max_panels {max_panels}: must be at least 1; use 50")
    check_picture(Path(path))
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    steps = len(table.timesteps)
    count = min(steps, max_panels)
    shown = sorted({round(index * (steps - 1) / max(1, count - 1)) for index in range(count)})
    columns = min(COLUMNS, max(4, math.ceil(math.sqrt(2 * len(shown)))))
    rows = -(-len(shown) // columns)
    panels_height = PANEL * rows + 0.4
    heights = [MAPS_HEIGHT] * (2 if more else 1) + [panels_height]
    figure: Any = Figure(figsize=(2 + PANEL * columns, 0.5 + sum(heights)), layout="constrained")
    upper, *between, lower = figure.subfigures(len(heights), 1, height_ratios=heights)
    shares_by_name = table.shares_per_step_and_layer()
    percents = {f"{name}: share of the layer's heads": 100 * share for name, share in shares_by_name.items()}
    _draw_maps(percents, upper, 0, 100, "%")
    for part in between:
        values = torch.stack(list((more or {}).values()))
        _draw_maps(more or {}, part, float(values.min()), float(values.max()), unit)
    _draw_panels(table, lower, shown, rows, columns)
    shares = table.shares()
    handles = [
        Patch(facecolor=COLOURS[branch], edgecolor="black", linewidth=0.5,
              label=f"{branch.name.lower()} {100 * shares[branch.name.lower()]:.1f} %")
        for branch in Branch
    ]  # fmt: skip
    lower.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    path = Path(path)
    with new_file(path) as unfinished:
        figure.savefig(unfinished, dpi=150)
    return path


def _draw_maps(maps: Mapping[str, Tensor], figure: Any, lowest: float, highest: float, unit: str) -> None:
    """Maps of steps x layers beside each other, by title."""
    panels = figure.subplots(1, len(maps), sharex=True, sharey=True, squeeze=False)[0]
    drawn: Any = None
    for panel, (title, values) in zip(panels, maps.items(), strict=True):
        steps, layers = values.shape
        extent = (0.5, steps + 0.5, layers - 0.5, -0.5)
        drawn = panel.imshow(
            values.T.tolist(), cmap="cividis", vmin=lowest, vmax=highest, aspect="auto", interpolation="nearest",
            extent=extent,
        )  # fmt: skip
        panel.set_title(title, fontsize="small")
        panel.set_xlabel("step")
        _whole_numbers(panel)
    panels[0].set_ylabel("layer")
    figure.colorbar(drawn, ax=list(panels), label=unit)


def _draw_panels(table: Routes, figure: Any, shown: list[int], rows: int, columns: int) -> None:
    """Layers x heads, a panel per step in `shown`."""
    from matplotlib.colors import ListedColormap

    _, layers, heads = table.routes.shape
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    ids = torch.where(table.takes(Branch.FULL), int(Branch.FULL), table.routes)  # [P, L, N]
    saved = table.saved_per_step()
    for panel in panels.flat[len(shown) :]:
        panel.set_visible(False)
    for index, (panel, step) in enumerate(zip(panels.flat, shown, strict=False)):
        panel.imshow(
            ids[step].tolist(), cmap=ListedColormap([COLOURS[branch] for branch in Branch]), vmin=0, vmax=2,
            aspect="auto", interpolation="nearest", extent=(-0.5, heads - 0.5, layers - 0.5, -0.5),
        )  # fmt: skip
        title = f"t = {table.timesteps[step]:.0f}: {100 * float(saved[step]):.0f} % saved"
        panel.set_title(title, fontsize="x-small")
        _whole_numbers(panel)
        panel.tick_params(labelbottom=index + columns >= len(shown))  # the lowest panel of each column
    figure.supxlabel("head")
    figure.supylabel("layer")


def _whole_numbers(panel: Any) -> None:
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.yaxis.get_major_locator().set_params(integer=True)
