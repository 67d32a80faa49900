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

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from vorta_trt.runtime.sampling.step_plan import StepPlan

COND, UNCOND = "cond", "uncond"


@dataclass
class _Context:
    """Where one context is: the step that comes next, and the sample that its skipped steps reuse."""

    following: int = 0
    kept: Tensor | None = None


class StepState:
    """Of one request, for one thread; requests side by side have one each.

    Attributes:
        plan: the plan. computed, reused: how many steps of each context were computed and reused so far.
    """

    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan
        self.reset()

    def reset(self) -> None:
        """Starts over: the next call is the first step of a new request, and nothing is kept from the last."""
        self._contexts: dict[str, _Context] = {}
        self.computed: Counter[str] = Counter()
        self.reused: Counter[str] = Counter()

    def begin(self, timestep: float | Tensor, context: str = COND) -> int:
        """The step that a call of the transformer belongs to. Called once per step and context, in the plan's order.

        Args:
            timestep: a number, or the pipeline's tensor of equal numbers. A tensor in a half type is compared with the
                plan's timestep rounded to that type: some pipelines of diffusers round them to the latents' type.
                One on a GPU is waited for.
        Raises: ValueError, for a timestep outside the plan or out of order.
        """
        state = self._contexts.setdefault(context, _Context())
        step, steps = state.following, len(self.plan.timesteps)
        given, dtype = _number(timestep)
        if step == steps:
            raise ValueError(
                f"timestep {given:g}, context {context!r}: all {steps} steps of the plan are done; start a request "
                f"with a new StepState, or reset() it"
            )
        if _rounded(self.plan.timesteps[step], dtype) != given:
            elsewhere = [index for index, other in enumerate(self.plan.timesteps) if _rounded(other, dtype) == given]
            what = f"is step {elsewhere[0]} of the plan" if elsewhere else "is not in the plan"
            raise ValueError(
                f"timestep {given:g}, context {context!r}: {what}; now comes step {step}, timestep "
                f"{self.plan.timesteps[step]:g}; plan with the pipeline's own timesteps (schedule_timesteps), call the "
                f"transformer once per step and context, and reset() between requests"
            )
        state.following += 1
        return step

    def starts_over(self, timestep: float | Tensor, context: str = COND) -> bool:
        """Whether a call can only be the first of another request: the plan's first timestep where another is due.

        So a pipeline that is called again, after a whole request or after one that was broken off, is noticed without
        being told. Two steps with the first timestep in a row are not.
        """
        following, steps = self._contexts.get(context, _Context()).following, self.plan.timesteps
        given, dtype = _number(timestep)
        if following == 0 or _rounded(steps[0], dtype) != given:
            return False
        return following == len(steps) or _rounded(steps[following], dtype) != given

    def reuse(self, step: int, context: str = COND) -> Tensor | None:
        """The sample to take instead of a launch, a copy; None: launch the engine."""
        state = self._at(step, context)
        if self.plan.compute[step]:
            return None
        if state.kept is None:
            raise RuntimeError(f"step {step}, context {context!r}: reuses a sample, but none was kept; call keep()")
        self.reused[context] += 1
        return state.kept.clone()

    def keep(self, step: int, context: str, sample: Tensor) -> None:
        """Takes a copy of the sample that was computed, if the step that follows reuses it."""
        state = self._at(step, context)
        if not self.plan.compute[step]:
            raise RuntimeError(f"step {step}, context {context!r}: was computed, but the plan reuses a sample there")
        self.computed[context] += 1
        following = self.plan.compute[step + 1 : step + 2]
        state.kept = sample.detach().clone() if following == (False,) else None

    def _at(self, step: int, context: str) -> _Context:
        state = self._contexts.get(context)
        if state is None or state.following != step + 1:
            raise RuntimeError(f"step {step}, context {context!r}: has not begun; call begin() first")
        return state


def _number(timestep: float | Tensor) -> tuple[float, torch.dtype]:
    """The timestep, and the type that it is exact in."""
    if not isinstance(timestep, Tensor):
        return _rounded(float(timestep), torch.float32), torch.float32
    values = set(timestep.detach().flatten().tolist())
    if len(values) != 1:
        raise ValueError(f"timestep with {len(values)} different values: a step has one timestep for the whole batch")
    dtype = timestep.dtype if timestep.dtype in (torch.float16, torch.bfloat16) else torch.float32
    return _rounded(float(values.pop()), dtype), dtype


def _rounded(value: float, dtype: torch.dtype) -> float:
    return float(torch.tensor(value, dtype=torch.float32).to(dtype))
