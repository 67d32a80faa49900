# SPDX-License-Identifier: Apache-2.0
"""`StepState`: follows a `StepPlan` through one request; every context ("cond", "uncond") on its own.

    state = StepState(plan)
    for every call of the transformer:
        step = state.begin(timestep, context)
        sample = state.reuse(step, context)
        if sample is None:
            sample = engine(..., route_override=plan.override_at(step))["sample"]
            state.keep(step, context, sample)

A batch of both contexts in one launch is one context; any name will do, if it is always the same.
"""

from __future__ import annotations

from torch import Tensor

from vorta_trt.runtime.sampling.step_plan import StepPlan

COND, UNCOND = "cond", "uncond"


class StepState:
    """Of one request; requests side by side have one each."""

    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan

    def begin(self, timestep: float | Tensor, context: str = COND) -> int:
        """The step that a call of the transformer belongs to. Called once per step and context, in the plan's order.

        Raises: ValueError, for a timestep outside the plan or out of order.
        """
        raise NotImplementedError

    def reuse(self, step: int, context: str = COND) -> Tensor | None:
        """The sample to take instead of a launch; None: launch the engine."""
        raise NotImplementedError

    def keep(self, step: int, context: str, sample: Tensor) -> None:
        """Takes a copy of the sample that was computed, if a later step reuses it."""
        raise NotImplementedError

    def reset(self) -> None:
        """Starts over: the next call is the first step of a new request."""
        raise NotImplementedError
