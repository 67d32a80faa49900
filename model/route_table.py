# SPDX-License-Identifier: Apache-2.0
"""Which branch every head takes at every step, known before sampling starts.

Letters: P denoising steps, L layers, N heads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vorta_trt.model.geometry import AttentionGeometry, Branch
from vorta_trt.model.router import hard_routes

if TYPE_CHECKING:
    from vorta_trt.model.transformer import RoutedTransformer

FORMAT = 1
# Okabe-Ito: told apart with every common form of colour blindness, and by lightness in grey print.
COLOURS = {Branch.FULL: "#D55E00", Branch.CORESET: "#F0E442", Branch.SLIDING: "#0072B2"}


@dataclass(frozen=True, eq=False)
class RouteTable:
    """Routes of a denoising schedule.

    Attributes:
        timesteps: P numbers. routes: int8 [P, L, N]. scores: float32 [P, L, N, 3]. tau: threshold used.
        geometry, head_dim: for the FLOPs. text_length: valid text tokens assumed, None for all.
    """

    timesteps: tuple[float, ...]
    routes: Tensor
    scores: Tensor
    tau: float
    geometry: AttentionGeometry
    head_dim: int
    text_length: int | None = None

    @classmethod
    def from_model(
        cls,
        model: RoutedTransformer,
        timesteps: Iterable[float] | Tensor,
        tau: float | None = None,
        route_override: Tensor | None = None,
    ) -> RouteTable:
        """Runs the timestep path and the routers only, not the transformer.

        Args:
            timesteps: as the scheduler gives them, e.g. `scheduler.timesteps`.
            tau, route_override: as in the model's forward.
        """
        if model.geometry is None:
            raise ValueError("geometry None: the route table needs it for its FLOPs; build the model with geometry=")
        tau = model.tau if tau is None else float(tau)
        given = timesteps.tolist() if isinstance(timesteps, Tensor) else list(timesteps)
        if not given:
            raise ValueError("timesteps []: must hold at least one; use scheduler.timesteps")
        device = next(model.parameters()).device
        with torch.no_grad():
            scores = model.route_scores(torch.tensor(given, dtype=torch.float32, device=device))  # [L, P, N, 3]
            override = None if route_override is None else route_override.to(device).unsqueeze(1)  # [L, 1, N]
            routes = hard_routes(scores, tau, override)  # [L, P, N]
        return cls(
            tuple(float(step) for step in given),
            routes.transpose(0, 1).to("cpu", torch.int8).contiguous(),
            scores.transpose(0, 1).to("cpu", torch.float32).contiguous(),
            tau,
            model.geometry,
            model.head_dim,
        )

    # -- figures -------------------------------------------------------------------------------------------------------

    def shares(self) -> dict[str, float]:
        """Share of heads per branch, over all steps and layers."""
        return {name: float(share.mean()) for name, share in self.shares_per_step().items()}

    def shares_per_step(self) -> dict[str, Tensor]:
        """Share of heads per branch and step: [P] each."""
        return {branch.name.lower(): self._takes(branch).double().mean(dim=(1, 2)) for branch in Branch}

    def flops_per_step(self) -> Tensor:
        """FLOPs of routed self-attention (QK^T and PV) per step and sample: float64 [P]."""
        flops = torch.zeros(len(self.timesteps), dtype=torch.float64)
        for branch in Branch:
            each = self.geometry.attention_flops(branch, self.head_dim, self.text_length)
            flops += self._takes(branch).double().sum(dim=(1, 2)) * each
        return flops

    @property
    def dense_flops(self) -> float:
        """FLOPs of dense self-attention, of one step and sample."""
        return float(self.routes[0].numel() * self.geometry.attention_flops("full", self.head_dim, self.text_length))

    def saved_per_step(self) -> Tensor:
        """Share of dense attention's FLOPs that routing saves, per step: float64 [P]."""
        return 1 - self.flops_per_step() / self.dense_flops

    @property
    def saved(self) -> float:
        """Share of dense attention's FLOPs that routing saves over the schedule."""
        return float(self.saved_per_step().mean())

    def _takes(self, branch: Branch) -> Tensor:
        """bool [P, L, N]; an unknown id is full attention."""
        if branch is Branch.FULL:
            return (self.routes != int(Branch.CORESET)) & (self.routes != int(Branch.SLIDING))
        return self.routes == int(branch)

    # -- out and in ----------------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """One JSON object; `from_json` reads it back."""
        content: dict[str, Any] = {
            "format": FORMAT,
            "tau": self.tau,
            "geometry": self.geometry.to_dict(),
            "head_dim": self.head_dim,
            "text_length": self.text_length,
            "shares": self.shares(),
            "attention_flops_dense": self.dense_flops * len(self.timesteps),
            "attention_flops_routed": float(self.flops_per_step().sum()),
            "attention_flops_saved": self.saved,
            "timesteps": list(self.timesteps),
            "routes": self.routes.tolist(),
            "scores": [round(score, 6) for score in self.scores.flatten().tolist()],
        }
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str) -> RouteTable:
        """Inverse of `to_json`, scores to 6 decimals."""
        content = json.loads(text)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"route table of format {found!r}: must be {FORMAT}; write it with RouteTable.to_json")
        routes = torch.tensor(content["routes"], dtype=torch.int8)  # [P, L, N]
        return cls(
            tuple(content["timesteps"]),
            routes,
            torch.tensor(content["scores"], dtype=torch.float32).view(*routes.shape, len(Branch)),
            content["tau"],
            AttentionGeometry.from_dict(content["geometry"]),
            content["head_dim"],
            content["text_length"],
        )

    def summary(self) -> str:
        """A few lines of text: shares and FLOPs saved, per step and in total."""
        steps, layers, heads = self.routes.shape
        shares, saved = self.shares_per_step(), self.saved_per_step()
        lines = [
            f"{steps} steps, {layers} layers, {heads} heads, tau {self.tau:g}",
            str(self.geometry),
            f"{'timestep':>9}" + "".join(f"{name:>9}" for name in shares) + f"{'saved':>9}",
        ]
        for step, timestep in enumerate(self.timesteps):
            row = "".join(f"{100 * float(share[step]):8.1f}%" for share in shares.values())
            lines.append(f"{timestep:9.1f}{row}{100 * float(saved[step]):8.1f}%")
        total = "".join(f"{100 * share:8.1f}%" for share in self.shares().values())
        lines.append(f"{'all':>9}{total}{100 * self.saved:8.1f}%")
        lines.append(
            f"attention per sample and schedule: {self.dense_flops * steps / 1e12:.4g} TFLOP dense, "
            f"{float(self.flops_per_step().sum()) / 1e12:.4g} TFLOP routed"
        )
        return "\n".join(lines)

    def plot(self, path: str | Path, max_panels: int = 12) -> Path:
        """A picture, layers x heads, a panel per step (evenly spaced ones beyond `max_panels`).

        The suffix of `path` is the format.
        """
        from matplotlib.colors import ListedColormap
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        steps, layers, heads = self.routes.shape
        shown = sorted({round(index * (steps - 1) / max(1, min(steps, max_panels) - 1)) for index in range(max_panels)})
        shown = [step for step in shown if step < steps]
        columns = min(4, len(shown))
        rows = -(-len(shown) // columns)
        figure = Figure(figsize=(1.2 + 2.2 * columns, 1.2 + 2.2 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        ids = torch.where(self._takes(Branch.FULL), int(Branch.FULL), self.routes)  # [P, L, N]
        saved = self.saved_per_step()
        for panel in panels.flat[len(shown) :]:
            panel.set_visible(False)
        for index, (panel, step) in enumerate(zip(panels.flat, shown, strict=False)):
            panel.imshow(
                ids[step].tolist(), cmap=ListedColormap([COLOURS[branch] for branch in Branch]), vmin=0, vmax=2,
                aspect="auto", interpolation="nearest", extent=(-0.5, heads - 0.5, layers - 0.5, -0.5),
            )  # fmt: skip
            panel.set_title(f"t = {self.timesteps[step]:.0f}: {100 * float(saved[step]):.0f} % saved", fontsize="small")
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.yaxis.get_major_locator().set_params(integer=True)
            panel.tick_params(labelbottom=index + columns >= len(shown))  # the lowest panel of each column
        figure.supxlabel("head")
        figure.supylabel("layer")
        shares = self.shares()
        handles = [
            Patch(facecolor=COLOURS[branch], edgecolor="black", linewidth=0.5,
                  label=f"{branch.name.lower()} {100 * shares[branch.name.lower()]:.1f} %")
            for branch in Branch
        ]  # fmt: skip
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
        path = Path(path)
        figure.savefig(path, dpi=150)
        return path
