# SPDX-License-Identifier: Apache-2.0
r"""`StepPlan`: everything known of one request before sampling; `StepState` follows it while sampling.

    path = timestep_path_of("model.bundle")
    plan = plan_steps(scheduler.timesteps, path=path, cache=TeaCache(), guards=RouteGuards(dense_first=2))
    print("\n".join(plan.lines()))

Routes come from the router, which depends on the timestep alone, and from overrides. Skipped steps come from the cache,
which depends on the timesteps alone. So everything in a plan is exact, except its cost, which is an estimate.

Letters: P denoising steps, L layers, N heads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vorta_trt.model.constants import ROUTER_DECIDES
from vorta_trt.model.route_table import RouteTable
from vorta_trt.model.router import check_tau
from vorta_trt.model.tables import percent, table_lines
from vorta_trt.runtime.sampling.cost import PlanCost, StepProfile
from vorta_trt.runtime.sampling.route_guards import RouteGuards
from vorta_trt.runtime.sampling.step_cache import StepCache

if TYPE_CHECKING:
    from vorta_trt.model.timestep_path import TimestepPath

FORMAT = 1


@dataclass(frozen=True, eq=False)
class StepPlan:
    """What happens at every step of one request, or at the steps of one of two experts.

    Attributes:
        timesteps: Timesteps of the steps [P], as the scheduler gives them.
        compute: Whether each step is computed [P]. A step that is not reuses the last computed sample of its context,
            without an engine launch.
        route_override: int32 [P, L, N], where -1 lets the router decide. None lets the router decide everywhere.
        tau: Routing threshold at run time; None takes the model's own.
        routes: Branches that the heads will take, or at a skipped step would have taken. None if router or timestep
            path are not known.
        cost: Predicted cost; None if the routes are not known.
        settings: Settings of cache and guards, for reports.
        notes: Notes for the user.
        first: Number of the plan's first step in the schedule. Step numbers that users see count from it.
        schedule_steps: Number of steps of the whole schedule; None if the plan is the whole schedule.
    """

    timesteps: tuple[float, ...]
    compute: tuple[bool, ...]
    route_override: Tensor | None = None
    tau: float | None = None
    routes: RouteTable | None = None
    cost: PlanCost | None = None
    settings: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()
    first: int = 0
    schedule_steps: int | None = None

    def __post_init__(self) -> None:
        steps = len(self.timesteps)
        if not steps:
            raise ValueError("timesteps []: must hold at least one; use scheduler.timesteps")
        if len(self.compute) != steps:
            raise ValueError(f"compute of {len(self.compute)} steps, timesteps of {steps}: must be as many")
        if not self.compute[0]:
            raise ValueError("compute[0] False: the first step has nothing to reuse, it must be computed")
        if self.route_override is not None and len(self.route_override) != steps:
            raise ValueError(f"route_override of {len(self.route_override)} steps, timesteps of {steps}: [P, L, N]")

    @property
    def computed_steps(self) -> int:
        """How many steps are computed."""
        return sum(self.compute)

    def override_at(self, step: int) -> Tensor | None:
        """The engine's input `route_override` at a step, int32 [L, N]; None lets the router decide everywhere."""
        return None if self.route_override is None else self.route_override[step]

    def departures(self, step: int, taken: Tensor) -> int:
        """The number of heads at which the engine took another branch than planned.

        A head may do so only where rounding decides: its two best scores are nearly equal, or its best score is nearly
        tau.

        Args:
            step: Index of the step in the plan.
            taken: The engine's output `routes`, int32 [L, B, N].
        """
        if self.routes is None:
            raise ValueError("routes None: the plan does not know them; make it with the model's timestep path")
        return int((self.routes.routes[step].unsqueeze(1) != taken.cpu()).any(dim=1).sum())  # of [L, N]

    @classmethod
    def joined(cls, parts: Sequence[StepPlan]) -> StepPlan:
        """The plan of a whole schedule from the plans of its parts; for reports."""
        if len(parts) == 1:
            return parts[0]
        overrides = [part.route_override for part in parts]
        if any(override is not None for override in overrides):
            layers, heads = next(tuple(override.shape[1:]) for override in overrides if override is not None)
            free = [
                torch.full((len(part.timesteps), layers, heads), ROUTER_DECIDES, dtype=torch.int32) for part in parts
            ]
            override = torch.cat([free[n] if each is None else each for n, each in enumerate(overrides)])  # [P, L, N]
        else:
            override = None
        tables = [part.routes for part in parts if part.routes is not None]
        costs = [part.cost for part in parts if part.cost is not None]
        return cls(
            tuple(timestep for part in parts for timestep in part.timesteps),
            tuple(compute for part in parts for compute in part.compute),
            override,
            parts[0].tau,
            RouteTable.joined(tables) if len(tables) == len(parts) else None,
            PlanCost.joined(costs) if len(costs) == len(parts) else None,
            parts[0].settings,
            tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        )

    # -- out -----------------------------------------------------------------------------------------------------------

    def to_json(self) -> str:
        """The plan as the text of a JSON object."""
        return json.dumps(
            {
                "format": FORMAT,
                "timesteps": list(self.timesteps),
                "compute": list(self.compute),
                "computed_steps": self.computed_steps,
                "tau": self.tau if self.routes is None else self.routes.tau,
                "settings": self.settings or {},
                "cost": None if self.cost is None else self.cost.to_dict(),
                "shares": None
                if self.routes is None
                else {name: share.tolist() for name, share in self.routes.shares_per_step().items()},
                "route_override": None if self.route_override is None else self.route_override.tolist(),
                "routes": None if self.routes is None else self.routes.routes.tolist(),
                "notes": list(self.notes),
            }
        )

    def lines(self, labels: Sequence[str] = ()) -> list[str]:
        """The plan as text: a row per step, totals, and the notes.

        Args:
            labels: The expert of each step [P]; if empty, there is no such column.
        """
        shares = {} if self.routes is None else self.routes.shares_per_step()
        cells = []
        for step, (timestep, runs) in enumerate(zip(self.timesteps, self.compute, strict=True)):
            taken = [percent(float(share[step])) if runs else "" for share in shares.values()]
            cost = [] if self.cost is None else [percent(self.cost.share(step))]
            label = labels[step : step + 1]
            cells.append(
                (str(step + self.first), f"{timestep:.1f}", *label, "compute" if runs else "reuse", *taken, *cost)
            )
        columns = (
            "step",
            "timestep",
            *(("expert",) if labels else ()),
            "",
            *shares,
            *([] if self.cost is None else ["cost"]),
        )
        rows = table_lines(columns, cells)
        reused = len(self.compute) - self.computed_steps
        computed = torch.tensor(self.compute)
        heads = ", ".join(f"{percent(float(share[computed].mean()))} {name}" for name, share in shares.items())
        rows.append(
            f"{self.computed_steps} of {len(self.compute)} steps computed, {reused} reused"
            + (f"; heads of computed steps: {heads}" if heads else "")
        )
        if self.cost is not None:
            counts = sorted(set(self.cost.passes), reverse=True)
            passes = "" if counts == [1] else f", {' or '.join(map(str, counts))} passes per step"
            rows.append(
                f"transformer per sample{passes}: {self.cost.flops / 1e12:.4g} TFLOP, "
                f"{self.cost.dense_flops / 1e12:.4g} dense without caching: {self.cost.speedup:.2f} times fewer"
            )
            if self.cost.seconds is not None and self.cost.dense_seconds is not None:
                rows.append(
                    f"from measured parts: {self.cost.seconds:.1f} s, {self.cost.dense_seconds:.1f} s dense without "
                    f"caching: {self.cost.dense_seconds / self.cost.seconds:.2f} times faster"
                )
        return rows + [f"note: {note}" for note in self.notes]


def plan_steps(
    timesteps: Iterable[float] | Tensor,
    *,
    path: TimestepPath | None = None,
    cache: StepCache | None = None,
    guards: RouteGuards | None = None,
    calibrated: Tensor | None = None,
    heads: tuple[int, int] | None = None,
    tau: float | None = None,
    timestep_dtype: torch.dtype = torch.float32,
    passes: int = 1,
    profile: StepProfile | None = None,
    part: range | None = None,
) -> StepPlan:
    """Plans one request, or the part of it that one of two experts computes.

    Args:
        timesteps: Timesteps of the scheduler, after set_timesteps.
        path: The model's timestep path. Without it there are neither routes nor cost, and no TeaCache.
        cache: The step cache; None computes every step.
        guards: See `RouteGuards`. Steps that a guard makes dense are always computed.
        calibrated: Calibrated routes, int32 [P, L, N].
        heads: Number of layers and heads (L, N), needed for guards without a `path`.
        tau: Routing threshold; None takes the model's own.
        timestep_dtype: Type to which the pipeline rounds timesteps before the transformer gets them, from the second
            step on. Routes and embeddings are those of the rounded timesteps. Some pipelines of diffusers do not round.
            Others round to the type of the latents, which is float32 at first; after the first step it is whatever the
            scheduler returns, which with FlowMatchEulerDiscreteScheduler is the type of the sample.
        passes: Number of passes per computed step, 2 with classifier-free guidance, batched or not; for the cost.
        profile: Measured times; for the cost.
        part: The steps of the schedule to plan; None plans all. Guards count steps in the whole schedule. A cache
            counts steps in the part, whose first step is always computed.
    """
    given = timesteps.tolist() if isinstance(timesteps, Tensor) else list(timesteps)
    scheduled = tuple(map(float, given))
    if not scheduled:
        raise ValueError("timesteps []: must hold at least one; use scheduler.timesteps")
    if not all(map(math.isfinite, scheduled)):
        raise ValueError(f"timesteps {list(scheduled)}: must be finite; use scheduler.timesteps")
    exact = torch.tensor(scheduled, dtype=torch.float32)  # [P]
    seen = (*map(float, exact[:1].tolist()), *map(float, exact[1:].to(timestep_dtype).tolist()))
    if tau is not None:
        check_tau(tau)
    guards = guards or RouteGuards()
    if path is not None:
        heads = path.num_layers, path.num_heads
    if heads is None and (guards != RouteGuards() or calibrated is not None):
        raise ValueError("guards without layers and heads: give path= or heads=(layers, heads)")
    steps = len(seen)
    part = range(steps) if part is None else part
    override = None if heads is None else guards.override(steps, *heads, calibrated)  # [P, L, N]
    override = None if override is None else override[part.start : part.stop]
    scheduled, seen = scheduled[part.start : part.stop], seen[part.start : part.stop]
    notes = []
    if cache is None:
        compute = (True,) * len(seen)
    else:
        cache = cache.for_model(path)
        compute = cache.compute(seen, path, guards.dense_steps(steps)[part.start : part.stop])
        notes += cache.notes(seen, path)
    plan = StepPlan(
        scheduled,
        compute,
        override,
        tau,
        settings={"cache": None if cache is None else cache.to_dict(), "guards": guards.to_dict()},
        first=part.start,
        schedule_steps=steps,
    )
    if path is None or path.geometry is None:
        notes.append(
            "routes and cost are unknown: the model's timestep embedder and router are not at hand; a bundle that is "
            "built again holds them"
        )
        return replace(plan, notes=tuple(notes))
    routes = path.route_table(seen, tau, override)
    return replace(plan, routes=routes, cost=PlanCost.of(routes, compute, passes, profile), notes=tuple(notes))
