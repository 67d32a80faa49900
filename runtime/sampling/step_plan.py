# SPDX-License-Identifier: Apache-2.0
"""`StepPlan`: everything known of one request before sampling; `StepState` follows it while sampling.

Letters: P denoising steps, L layers, N heads.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vorta_trt.model.route_table import RouteTable


@dataclass(frozen=True, eq=False)
class StepPlan:
    """What happens at every step of one request.

    Attributes:
        timesteps: P, as the scheduler gives them.
        compute: P; False: the step reuses the last computed sample of its context, no engine launch.
        route_override: int32 [P, L, N], -1 = the router decides; None: the router decides everywhere.
        tau: routing threshold at run time; None: the model's own.
        routes: what will be taken, if router and timestep path are known.
    """

    timesteps: tuple[float, ...]
    compute: tuple[bool, ...]
    route_override: Tensor | None = None
    tau: float | None = None
    routes: RouteTable | None = None

    def override_at(self, step: int) -> Tensor | None:
        """What the engine takes as `route_override` at a step: int32 [L, N]; None: the router decides everywhere."""
        return None if self.route_override is None else self.route_override[step]
