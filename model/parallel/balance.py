# SPDX-License-Identifier: Apache-2.0
"""`Balance`: how much attention every rank computes in each step and layer, with heads in order and placed by work.

Letters: P denoising steps, L layers, R ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vorta_trt.model.parallel.placement import BranchCosts, Placement, head_orders, rank_loads
from vorta_trt.model.tables import table_lines


@dataclass(frozen=True, eq=False)
class Balance:
    """Work of every rank under both placements.

    A layer's attention is done when its busiest rank is, so what counts is the busiest rank's work over the mean: 1 if
    all have the same.

    Attributes:
        costs: Cost of a head in each branch, in the unit of the loads.
        in_order: Work of every rank with heads in the model's order, float64 [P, L, R].
        balanced: Work of every rank with heads placed by `head_orders`, float64 [P, L, R].
    """

    costs: BranchCosts
    in_order: Tensor
    balanced: Tensor

    @classmethod
    def of(cls, routes: Tensor, ranks: int, costs: BranchCosts) -> Balance:
        """Places the heads of a schedule.

        Args:
            routes: Branch ids [P, L, N].
            ranks: R, which must divide N.
            costs: Cost of a head in each branch.

        Raises:
            ValueError: R does not divide N.
        """

        def loads(placement: Placement) -> Tensor:
            order = head_orders(routes, costs, ranks, placement)
            return rank_loads(routes.unsqueeze(-2), costs, order, ranks)

        return cls(costs, loads("in_order"), loads("balanced"))

    @property
    def ranks(self) -> int:
        """R."""
        return self.in_order.shape[-1]

    def over_mean(self) -> dict[str, Tensor]:
        """Work of the busiest rank over the mean, by placement: float64 [P, L] each."""
        return {"in order": _over_mean(self.in_order), "balanced": _over_mean(self.balanced)}

    @property
    def speedup(self) -> float:
        """How many times faster the attention of the whole schedule is balanced than in order, by the busiest ranks."""
        return float(self.in_order.amax(-1).sum() / self.balanced.amax(-1).sum())

    def lines(self, timesteps: Sequence[float]) -> list[str]:
        """A row for every step, and one for the schedule."""
        loads = (self.in_order, self.balanced)
        rows = [
            (f"{timestep:.1f}", *(cell for load in loads for cell in _cells(load[step])))
            for step, timestep in enumerate(timesteps)
        ]
        columns = ("timestep", "in order", "worst layer", "balanced", "worst layer")
        return [
            f"attention on {self.ranks} GPUs: work of the busiest one over the mean of all; a full head costs "
            f"{self.costs.full:.4g}, coreset {self.costs.coreset:.4g}, sliding {self.costs.sliding:.4g}",
            *table_lines(columns, (*rows, ("all", *(cell for load in loads for cell in _cells(load))))),
            f"heads placed by work make attention {self.speedup:.3f} times faster than heads in order; predicted, not "
            f"timed",
        ]

    def to_dict(self) -> dict[str, Any]:
        """The content in plain JSON types; loads are lists [P][L][R]."""
        return {
            "gpus": self.ranks,
            "costs": self.costs._asdict(),
            "speedup_in_attention": self.speedup,
            "busiest_over_mean": {name.replace(" ", "_"): float(_total(load)) for name, load in self._loads()},
            "loads_in_order": _rounded(self.in_order),
            "loads_balanced": _rounded(self.balanced),
        }

    def _loads(self) -> tuple[tuple[str, Tensor], ...]:
        return ("in order", self.in_order), ("balanced", self.balanced)


def _over_mean(loads: Tensor) -> Tensor:
    mean = loads.mean(-1)
    return (loads.amax(-1) / mean).where(mean > 0, 1.0)  # branches may cost nothing


def _total(loads: Tensor) -> Tensor:
    """Time of all layers, one after the other, over what it would be with equal work."""
    total: Tensor = loads.amax(-1).sum() / loads.mean(-1).sum()
    return total


def _cells(loads: Tensor) -> tuple[str, str]:
    return f"{float(_total(loads)):.3f}", f"{float(_over_mean(loads).max()):.3f}"


def _rounded(loads: Tensor) -> list[Any]:
    digits = 6 - int(loads.max().log10().floor())  # seven significant digits of the largest, seconds or relative
    return [[[round(load, digits) for load in layer] for layer in step] for step in loads.tolist()]
