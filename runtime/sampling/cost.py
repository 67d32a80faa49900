# SPDX-License-Identifier: Apache-2.0
"""`PlanCost`: the predicted cost of a request, counted in FLOPs and, from measured parts, in seconds.

The cost is that of the transformer (see `transformer_flops`), for all passes of guidance. Text encoder, VAE and
scheduler are left out. FLOPs are not time: sparse branches and small matrices run at other rates than dense ones.

Letters: P denoising steps, L layers, N heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from vorta_trt.model.geometry import Branch
from vorta_trt.model.parallel.placement import BranchCosts
from vorta_trt.model.records import Record, load_record
from vorta_trt.model.route_table import RouteTable


class StepProfile(Record, extra="forbid"):
    """Measured seconds of one pass of one sample.

    Attributes:
        other: Seconds of everything outside the routed attention.
        full: Seconds of one head of one layer in the full branch.
        coreset: Seconds of one head of one layer in the coreset branch.
        sliding: Seconds of one head of one layer in the sliding branch.
    """

    other: float = Field(ge=0)
    full: float = Field(ge=0)
    coreset: float = Field(ge=0)
    sliding: float = Field(ge=0)

    @classmethod
    def load(cls, path: str | Path) -> StepProfile:
        """Reads JSON: {"other": 1.2, "full": 2e-3, "coreset": 5e-4, "sliding": 3e-4}."""
        remedy = f"must be a JSON object with the seconds {', '.join(cls.model_fields)}"
        return load_record(cls, path, "step profile", remedy)

    @property
    def branch_costs(self) -> BranchCosts:
        """Seconds of a head in each branch, for placing heads on several GPUs."""
        return BranchCosts(self.full, self.coreset, self.sliding)

    def seconds(self, routes: RouteTable) -> list[float]:
        """Seconds of one pass of each step with these routes: P numbers."""
        seconds = [self.other] * len(routes.timesteps)
        for branch in Branch:
            each = float(getattr(self, branch.name.lower()))
            heads = routes.takes(branch).sum(dim=(1, 2)).tolist()  # P
            seconds = [so_far + count * each for so_far, count in zip(seconds, heads, strict=True)]
        return seconds


@dataclass(frozen=True)
class PlanCost:
    """The cost of one sample.

    Attributes:
        step_flops: FLOPs of one pass of each step [P], whether the step is computed or skipped.
        dense_step_flops: FLOPs of one pass with full attention in all heads.
        compute: Whether each step is computed [P].
        passes: Number of passes of each step [P] if it is computed, 2 with guidance.
        step_seconds: Seconds of one pass of each step [P]; None without a profile.
        dense_step_seconds: Seconds of one pass with full attention in all heads; None without a profile.
    """

    step_flops: tuple[float, ...]
    dense_step_flops: float
    compute: tuple[bool, ...]
    passes: tuple[int, ...]
    step_seconds: tuple[float, ...] | None = None
    dense_step_seconds: float | None = None

    @classmethod
    def of(
        cls, routes: RouteTable, compute: Sequence[bool], passes: int = 1, profile: StepProfile | None = None
    ) -> PlanCost | None:
        """The cost of steps; None if the table does not know the FLOPs outside the attention."""
        other = routes.other_flops_per_step
        if other is None:
            return None
        steps, layers, heads = routes.routes.shape
        return cls(
            tuple(float(attention) + other for attention in routes.flops_per_step()),
            routes.dense_flops + other,
            tuple(compute),
            (passes,) * steps,
            None if profile is None else tuple(profile.seconds(routes)),
            None if profile is None else profile.other + layers * heads * profile.full,
        )

    @classmethod
    def joined(cls, parts: Sequence[PlanCost]) -> PlanCost:
        """The cost of a whole schedule from the costs of its parts, e.g. of two experts of one architecture."""
        seconds = [part.step_seconds for part in parts if part.step_seconds is not None]
        return cls(
            tuple(flops for part in parts for flops in part.step_flops),
            parts[0].dense_step_flops,
            tuple(compute for part in parts for compute in part.compute),
            tuple(passes for part in parts for passes in part.passes),
            tuple(second for part in seconds for second in part) if len(seconds) == len(parts) else None,
            parts[0].dense_step_seconds,
        )

    @property
    def flops(self) -> float:
        """FLOPs of the whole request."""
        return self._computed(self.step_flops)

    @property
    def dense_flops(self) -> float:
        """FLOPs of the request with every step computed and every head full."""
        return sum(self.passes) * self.dense_step_flops

    @property
    def speedup(self) -> float:
        """Ratio of the FLOPs with every step computed and every head full to the FLOPs of the plan."""
        return self.dense_flops / self.flops

    @property
    def seconds(self) -> float | None:
        """Seconds of the transformer in the whole request; None without a profile."""
        return None if self.step_seconds is None else self._computed(self.step_seconds)

    @property
    def dense_seconds(self) -> float | None:
        """Seconds of the transformer with every step computed and every head full; None without a profile."""
        return None if self.dense_step_seconds is None else sum(self.passes) * self.dense_step_seconds

    def share(self, step: int) -> float:
        """Ratio of a step's FLOPs to those of a dense step; 0 if the step is skipped."""
        return self.step_flops[step] / self.dense_step_flops if self.compute[step] else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The cost as an object for JSON."""
        return {
            "passes": self.passes[0] if len(set(self.passes)) == 1 else list(self.passes),
            "flops": self.flops,
            "flops_dense": self.dense_flops,
            "speedup_in_flops": self.speedup,
            "flops_per_step": [
                passes * flops * computed
                for passes, flops, computed in zip(self.passes, self.step_flops, self.compute, strict=True)
            ],
            "seconds": self.seconds,
            "seconds_dense": self.dense_seconds,
        }

    def _computed(self, values: Sequence[float]) -> float:
        """The sum over the passes of the steps that are computed."""
        steps = zip(values, self.compute, self.passes, strict=True)
        return sum(value * passes for value, computed, passes in steps if computed)
