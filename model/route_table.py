# SPDX-License-Identifier: Apache-2.0
"""Which branch every head takes at every step, known before sampling starts.

Letters: P denoising steps, L layers, N heads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field, JsonValue, ValidationError
from torch import Tensor

from vorta_trt.model.files import json_kind
from vorta_trt.model.geometry import AttentionGeometry, Branch
from vorta_trt.model.records import Record, first_error
from vorta_trt.model.router import hard_routes
from vorta_trt.model.tables import percent, table_lines
from vorta_trt.model.transformer_flops import other_flops

if TYPE_CHECKING:
    from vorta_trt.model.parallel.balance import Balance
    from vorta_trt.model.transformer import RoutedTransformer

FORMAT = 1
KIND = json_kind("route table", "format", "tau", "geometry", "timesteps", "routes", "scores")
MAX_PANELS = 50  # of the picture: every step of the usual schedule


class _RouteTableFile(Record):
    """The entries of the file that `RouteTable.from_json` reads; the others follow from these."""

    format: Literal[1]
    tau: float
    geometry: dict[str, JsonValue]
    head_dim: int
    text_length: int | None
    timesteps: tuple[float, ...]
    routes: list[list[list[Annotated[int, Field(ge=-128, le=127)]]]]
    scores: list[float]
    other_flops_per_step: dict[str, int] | None = None  # absent from tables of older versions


@dataclass(frozen=True, eq=False)
class RouteTable:
    """Routes of a denoising schedule.

    Attributes:
        timesteps: P timesteps.
        routes: int8 [P, L, N].
        scores: float32 [P, L, N, 3].
        tau: Threshold used.
        geometry: Geometry of the attention, for its FLOPs.
        head_dim: Head dimension D, for the FLOPs.
        text_length: Valid text tokens assumed, None for all.
        other_flops: FLOPs of a step and sample outside the routed self-attention, by part (see `transformer_flops`);
            None if not known, then there are no end-to-end figures.
    """

    timesteps: tuple[float, ...]
    routes: Tensor
    scores: Tensor
    tau: float
    geometry: AttentionGeometry
    head_dim: int
    text_length: int | None = None
    other_flops: Mapping[str, int] | None = None

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
            model: Model whose routers decide.
            timesteps: P timesteps, as the scheduler gives them, e.g. `scheduler.timesteps`.
            tau: Routing threshold; None takes the model's.
            route_override: int32 [L, N]; -1 lets the router decide, another id replaces its choice.
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
            other_flops=other_flops(model.family, model.config, model.geometry, has_router=model.has_router),
        )

    @classmethod
    def joined(cls, parts: Sequence[RouteTable]) -> RouteTable:
        """The table of a whole schedule, joined from those of its parts: of two experts of one architecture."""
        return replace(
            parts[0],
            timesteps=tuple(timestep for part in parts for timestep in part.timesteps),
            routes=torch.cat([part.routes for part in parts]),  # [P, L, N]
            scores=torch.cat([part.scores for part in parts]),  # [P, L, N, 3]
        )

    # -- figures -------------------------------------------------------------------------------------------------------

    def shares(self) -> dict[str, float]:
        """Share of heads per branch, over all steps and layers."""
        return {name: float(share.mean()) for name, share in self.shares_per_step().items()}

    def shares_per_step(self) -> dict[str, Tensor]:
        """Share of heads per branch and step: [P] each."""
        return {name: shares.mean(dim=1) for name, shares in self.shares_per_step_and_layer().items()}

    def shares_per_step_and_layer(self) -> dict[str, Tensor]:
        """Share of heads per branch, step and layer: float64 [P, L] each."""
        return {branch.name.lower(): self.takes(branch).double().mean(dim=2) for branch in Branch}

    def flops_per_step(self) -> Tensor:
        """FLOPs of routed self-attention (QK^T and PV) per step and sample: float64 [P]."""
        flops = torch.zeros(len(self.timesteps), dtype=torch.float64)
        for branch in Branch:
            each = self.geometry.attention_flops(branch, self.head_dim, self.text_length)
            flops += self.takes(branch).double().sum(dim=(1, 2)) * each
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

    @property
    def other_flops_per_step(self) -> int | None:
        """FLOPs of a step and sample that routing leaves as they are; None if not known."""
        return None if self.other_flops is None else sum(self.other_flops.values())

    @property
    def total_dense_flops(self) -> float | None:
        """FLOPs of the whole transformer over the schedule, per sample, with dense attention; None if not known."""
        other = self.other_flops_per_step
        return None if other is None else len(self.timesteps) * (self.dense_flops + other)

    @property
    def total_routed_flops(self) -> float | None:
        """FLOPs of the whole schedule with these routes."""
        other = self.other_flops_per_step
        return None if other is None else float(self.flops_per_step().sum()) + len(self.timesteps) * other

    @property
    def total_saved(self) -> float | None:
        """Share of the transformer's FLOPs that routing saves over the schedule; None if not known."""
        dense, routed = self.total_dense_flops, self.total_routed_flops
        return None if dense is None or routed is None else 1 - routed / dense

    def takes(self, branch: Branch) -> Tensor:
        """Which heads take `branch`, bool [P, L, N]; an unknown id is full attention."""
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
            "other_flops_per_step": None if self.other_flops is None else dict(self.other_flops),
            "total_flops_dense": self.total_dense_flops,
            "total_flops_routed": self.total_routed_flops,
            "total_flops_saved": self.total_saved,
            "shares_per_step_and_layer": {
                name: [[round(share, 6) for share in step] for step in shares.tolist()]
                for name, shares in self.shares_per_step_and_layer().items()
            },
            "timesteps": list(self.timesteps),
            "routes": self.routes.tolist(),
            "scores": [round(score, 6) for score in self.scores.flatten().tolist()],
        }
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str) -> RouteTable:
        """Inverse of `to_json`, scores to 6 decimals."""
        try:
            content = _RouteTableFile.model_validate_json(text)
            routes = torch.tensor(content.routes, dtype=torch.int8)  # [P, L, N]
            return cls(
                content.timesteps,
                routes,
                torch.tensor(content.scores, dtype=torch.float32).view(*routes.shape, len(Branch)),
                content.tau,
                AttentionGeometry.from_dict(content.geometry),
                content.head_dim,
                content.text_length,
                content.other_flops_per_step,
            )
        except (ValueError, TypeError, RuntimeError) as error:
            found = first_error(error) if isinstance(error, ValidationError) else error
            raise ValueError(f"route table: {found}; write it with RouteTable.to_json") from error

    def summary(self) -> str:
        """A few lines of text: shares and attention FLOPs saved, per step and in total; end-to-end FLOPs."""
        steps, layers, heads = self.routes.shape
        shares, saved = self.shares_per_step(), self.saved_per_step()
        rows = [
            (
                f"{timestep:.1f}",
                *(percent(float(share[step])) for share in shares.values()),
                percent(float(saved[step])),
            )
            for step, timestep in enumerate(self.timesteps)
        ]
        total = ("all", *map(percent, self.shares().values()), percent(self.saved))
        lines = [
            f"{steps} steps, {layers} layers, {heads} heads, tau {self.tau:g}",
            str(self.geometry),
            *table_lines(("timestep", *shares, "saved"), (*rows, total)),
            f"attention per sample and schedule: {self.dense_flops * steps / 1e12:.4g} TFLOP dense, "
            f"{float(self.flops_per_step().sum()) / 1e12:.4g} TFLOP routed",
        ]
        if self.other_flops is not None and self.total_dense_flops and self.total_routed_flops:
            parts = ", ".join(
                f"{name.replace('_', ' ')} {flops / 1e12:.4g}" for name, flops in self.other_flops.items()
            )
            lines += [
                f"the rest of a step, in TFLOP: {parts}",
                f"end to end per sample and schedule: {self.total_dense_flops / 1e12:.4g} TFLOP dense, "
                f"{self.total_routed_flops / 1e12:.4g} TFLOP routed",
            ]
        return "\n".join(lines)

    def plot(self, path: str | Path, max_panels: int = MAX_PANELS, balance: Balance | None = None) -> Path:
        """A picture, see `route_picture.draw_routes`; the suffix of `path` is the format.

        With a `balance` of these routes, it shows where heads in order leave GPUs waiting, and where balanced ones do.
        """
        from vorta_trt.model.route_picture import draw_routes

        if balance is None:
            return draw_routes(self, path, max_panels)
        maps = {f"{balance.ranks} GPUs, heads {name}": ratio for name, ratio in balance.over_mean().items()}
        return draw_routes(self, path, max_panels, maps, "busiest GPU / mean")
