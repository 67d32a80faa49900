# SPDX-License-Identifier: Apache-2.0
"""`Request`: what happens at the calls of a transformer while a pipeline samples by a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from torch import Tensor

from vorta_trt.runtime.fallbacks import Fallbacks
from vorta_trt.runtime.pipelines.denoiser import Denoiser
from vorta_trt.runtime.pipelines.guidance import Given, GuidanceBatching, Inputs
from vorta_trt.runtime.pipelines.inputs import ModelInputs
from vorta_trt.runtime.sampling.finite import FiniteCheck
from vorta_trt.runtime.sampling.step_plan import StepPlan
from vorta_trt.runtime.sampling.step_state import COND, StepState

OnStep = Callable[[int], None]  # called with the step that begins


class Request:
    """Follows a plan; see `VortaTransformer.request`, which makes it.

    A schedule that starts over is a new request: nothing is left of the one before.

    Attributes:
        plan: the plan. launches: of the model so far, over all requests. state: steps of the request that runs.
        fallbacks: what ran otherwise than asked for.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        convert: ModelInputs,
        plan: StepPlan,
        *,
        batched: bool,
        fallbacks: Fallbacks,
        locate: bool,
        on_step: OnStep | None,
    ) -> None:
        self._denoiser, self._convert, self._on_step = denoiser, convert, on_step
        self.plan, self.fallbacks = plan, fallbacks
        self.state = StepState(plan)
        self.launches: Counter[str] = Counter()
        self._finite = FiniteCheck(denoiser.locate if locate else None)
        self._guidance = GuidanceBatching(convert, self._launch, fallbacks, batched)
        self._taken: list[tuple[int, Tensor]] = []  # routes that are not compared with the plan yet
        self._step, self._timestep = 0, 0.0

    def sample(self, context: str, given: Given) -> Tensor:
        """The sample of one call of the transformer."""
        timestep = given["timestep"]
        assert timestep is not None
        if context == COND and self.state.starts_over(timestep, context):
            self.reset()
        step = self.state.begin(timestep, context)
        self._step, self._timestep = step, self.plan.timesteps[step]
        self._compare_routes()
        if self._on_step is not None and context == COND:
            self._on_step(step)
        sample = self.state.reuse(step, context)
        if sample is None:
            sample = self._guidance.sample(context, given)
            self.state.keep(step, context, sample)
        return sample

    def reset(self) -> None:
        """Lets go of everything that belongs to one request."""
        self.finish()
        self.state.reset()
        self._guidance.reset()
        self._convert.forget()

    def finish(self) -> None:
        """Checks what has not been checked yet: the last sample and the last routes."""
        self._finite.finish()
        self._compare_routes()

    def _launch(self, inputs: Inputs, context: str) -> Tensor:
        override = self.plan.override_at(self._step)
        sample, routes = self._denoiser.run(inputs, self.plan.tau, override)  # [B, C, F, H, W], [L, B, N]
        self.launches[context] += 1
        known = {"tau": self.plan.tau, "route_override": override}
        run_again = {**inputs, **{name: value for name, value in known.items() if value is not None}}
        self._finite(sample, self._step, self._timestep, context, run_again)
        if self.plan.routes is not None:
            self._taken.append((self._step, routes))
        return sample

    def _compare_routes(self) -> None:
        """Compares routes with the plan; those of a GPU have arrived by the time that the next step begins."""
        taken, self._taken = self._taken, []
        for step, routes in taken:
            if departures := self.plan.departures(step, routes):
                layers, heads = self._denoiser.heads
                self.fallbacks.record(
                    "planned routes",
                    f"step {step}, timestep {self.plan.timesteps[step]:g}: {departures} of {layers * heads} heads took "
                    f"another branch than planned",
                )
