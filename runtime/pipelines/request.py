# SPDX-License-Identifier: Apache-2.0
"""`Request`: handles the calls of a transformer while a pipeline samples by a plan.

Steps are counted, so no call waits for the GPU to read its timestep. The timesteps are copied to the host together with
the check for values that are not finite, and are compared with the plan one launch later.

Batched guidance. diffusers' pipelines call the transformer twice per step, for "cond" and then for "uncond", with the
same latents and timestep. In the first step both calls launch the transformer, and the conditions of the "uncond" call
are kept. From then on, the call for "cond" launches both passes as one batch and keeps the "uncond" half. The call for
"uncond" takes that half if and only if it comes with the very same tensors (see `Snapshot`). So P steps are P + 1
launches instead of 2 P. If a call comes with other tensors, or the batch does not fit into memory, the call is launched
on its own and counted as a fallback, and the request is not batched any more: a further wrong guess would waste half a
launch each time. A launch with twice the batch sums in another order, so samples are equal only up to rounding.

Guidance in parallel (`PassExchange`). At every step one half of the ranks launches the "cond" pass, and the other half
the "uncond" pass. On a rank that computes "uncond", the call for "cond" returns a sample that is filled only in the
call for "uncond". This works because diffusers' pipelines read neither sample before both calls have returned. The
samples equal those of one process bit for bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vorta_trt.runtime.device.device_memory import DeviceOutOfMemory
from vorta_trt.runtime.fallbacks import Fallbacks
from vorta_trt.runtime.parallel.errors import ParallelError
from vorta_trt.runtime.parallel.ranks import PassExchange
from vorta_trt.runtime.pipelines.denoiser import BATCHED_GUIDANCE, Denoiser
from vorta_trt.runtime.pipelines.inputs import (
    Given,
    Inputs,
    ModelInputs,
    Snapshot,
    begins_schedule,
    check_timestep,
)
from vorta_trt.runtime.pipelines.timesteps import of_schedule
from vorta_trt.runtime.sampling.finite import FiniteCheck, HostCopy
from vorta_trt.runtime.sampling.step_plan import StepPlan

OnStep = Callable[[int], None]  # (number of the step that begins)
OnLatents = Callable[[int, Tensor], None]  # (number of the step that begins, its latents)
COND, UNCOND = "cond", "uncond"
BOTH = f"{COND} + {UNCOND}"


@dataclass
class _Context:
    """Progress of one context: the index of its next step, and the sample that its skipped steps reuse."""

    following: int = 0
    kept: Tensor | None = None


class StepState:
    """Counts the steps of one video, separately for each context ("cond", "uncond"), and keeps samples for reuse.

    Attributes:
        plan: The plan of the steps.
    """

    def __init__(self, plan: StepPlan) -> None:
        self.plan = plan
        self.reset()

    def reset(self) -> None:
        """Starts over: the next call is the first step, and nothing is kept."""
        self._contexts: dict[str, _Context] = {}

    @property
    def taken(self) -> int:
        """How many steps have begun in the context that is furthest ahead."""
        return max((context.following for context in self._contexts.values()), default=0)

    def is_done(self, context: str = COND) -> bool:
        """Whether all steps of a context have begun."""
        return context in self._contexts and self._contexts[context].following == len(self.plan.timesteps)

    def sample(self, context: str, launch: Callable[[int], Tensor | None]) -> Tensor:
        """The sample of a context's next step: computed by a launch, or a copy of the context's last sample.

        Args:
            context: Name of the context.
            launch: Called with the index of every step. It returns the sample of a step that is computed, and None for
                a skipped step.

        Raises:
            ValueError: All steps are done.
        """
        if self.is_done(context):
            raise ValueError(
                f"context {context!r}: all {len(self.plan.timesteps)} steps of the plan are done; reset() between two "
                f"videos"
            )
        state = self._contexts.setdefault(context, _Context())
        step, compute = state.following, self.plan.compute
        state.following += 1
        sample = launch(step)
        if not compute[step]:
            assert state.kept is not None  # the first step is computed
            return state.kept.clone()
        assert sample is not None
        state.kept = sample.detach().clone() if compute[step + 1 : step + 2] == (False,) else None
        return sample

    def fill(self, context: str, sample: Tensor) -> None:
        """Writes the sample of a context's last step, which was not known at that step, into the kept sample."""
        kept = self._contexts[context].kept
        if kept is not None:
            kept.copy_(sample)


class Request:
    """Runs the calls of a transformer by a plan. `VortaTransformer.request` makes it.

    When the schedule starts over, a new video begins, and no state of the video before is left. The schedule starts
    over when all steps are done, or when the timestep is the first element of a schedule's tensor, as it is in
    diffusers' pipelines.

    Args:
        denoiser: Launches the transformer.
        convert: Converts the pipeline's tensors to the model's.
        plan: The plan.
        batched: Whether both samples of guidance share a launch.
        guided: False where the guidance scale is 1. The unconditional sample then cancels out, so the conditional
            sample is used in its place and only computed once.
        fallbacks: Counts what runs otherwise than asked for.
        locate: Whether to look for the layer in which values became non-finite.
        on_step: Called with the number of every step as it begins.
        pipeline: The pipeline of diffusers. If its `interrupt` is set, steps that were not taken are no fallback.
        passes: Exchanges the samples of both passes of guidance, of which this rank computes one. None computes both
            passes here.
        on_latents: Called with the number and the latents of every step as it begins.

    Attributes:
        plan: The plan.
        fallbacks: The counts of what ran otherwise than asked for.
        state: Counts the steps of the current video.
        launches: Number of launches of the model so far, over all videos, by context.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        convert: ModelInputs,
        plan: StepPlan,
        *,
        batched: bool = False,
        guided: bool = True,
        fallbacks: Fallbacks,
        locate: bool = False,
        on_step: OnStep | None = None,
        pipeline: Any = None,
        passes: PassExchange | None = None,
        on_latents: OnLatents | None = None,
    ) -> None:
        self._denoiser, self._convert, self._on_step, self._pipeline = denoiser, convert, on_step, pipeline
        self._passes, self._on_latents = passes if guided else None, on_latents
        self.plan, self.fallbacks = plan, fallbacks
        self.state = StepState(plan)
        self.launches: Counter[str] = Counter()
        self._finite = FiniteCheck(denoiser.locate if locate else None)
        self._batched, self._guides, self._step, self._videos = batched and guided, guided, 0, 0
        self._cond_sample: Tensor | None
        self._to_fill: Tensor | None  # the sample that the call for "cond" returned, with guidance in parallel
        self._uncond: tuple[Snapshot, Inputs] | None
        self._waiting: tuple[Snapshot, Tensor] | None
        self._timestep: Tensor | None
        self._seen: list[tuple[int, torch.dtype, HostCopy]]  # timesteps that are not yet compared with the plan
        self._routes: list[tuple[int, HostCopy]]  # routes that are not yet compared with the plan
        self._forget()

    # -- calls ---------------------------------------------------------------------------------------------------------

    def sample(self, context: str, given: Given) -> Tensor:
        """Computes the sample that one call of the transformer returns."""
        timestep = given["timestep"]
        assert timestep is not None
        if context == COND and self.state.is_done():
            self.reset()
        elif context == COND and self.state.taken and self._begins(timestep):
            self._forget()  # the previous video was not sampled to its end
        return self.state.sample(context, lambda step: self._begin(step, context, timestep, given))

    def _begins(self, timestep: Tensor) -> bool:
        plan = self.plan
        return begins_schedule(timestep, plan.schedule_steps or len(plan.timesteps), plan.first)

    def _begin(self, step: int, context: str, timestep: Tensor, given: Given) -> Tensor | None:
        self._step = step
        if timestep is not self._timestep:
            self._timestep = timestep
            self._seen.append((step, timestep.dtype, HostCopy(of_schedule(timestep))))
        if self._on_step is not None and context == COND:
            self._on_step(self.plan.first + step)
        if self._on_latents is not None and context == COND:
            latents = given["hidden_states"]
            assert latents is not None
            self._on_latents(self.plan.first + step, latents)
        return self._guided(context, given) if self.plan.compute[step] else None

    def _guided(self, context: str, given: Given) -> Tensor:
        """The sample of a computed step: from a launch, or from the launch that the call before has made."""
        if context == UNCOND and not self._guides and self._cond_sample is not None:
            return self._cond_sample
        if self._passes is not None and context in (COND, UNCOND):
            return self._in_parallel(self._passes, context, given)
        inputs = self._convert(given, context)
        if not self._guides:
            sample = self._launch(inputs, context)
            self._cond_sample = sample if context == COND else None
            return sample
        if not self._guessing or context not in (COND, UNCOND):
            return self._launch(inputs, context)
        if context == COND:
            return self._cond(given, inputs)
        waiting, self._waiting = self._waiting, None
        if waiting is not None and self._uncond is not None:
            steps, conditions = self._convert.of_step(given), self._convert.conditions_of(given)
            if waiting[0].same(steps) and self._uncond[0].same(conditions):
                return waiting[1]
            self._give_up("the unconditional sample was asked for with other tensors than expected")
        elif self._uncond is None:
            converted = {name: tensor for name, tensor in inputs.items() if name not in self._convert.steps}
            self._uncond = Snapshot(self._convert.conditions_of(given)), converted
        return self._launch(inputs, UNCOND)

    def _in_parallel(self, passes: PassExchange, context: str, given: Given) -> Tensor:
        """The sample of a call with guidance in parallel: this rank launches one pass, another rank the other pass."""
        own = (COND, UNCOND)[passes.own]
        latents = given["hidden_states"]
        assert latents is not None
        sample = self._launch(self._convert(given, context), context) if context == own else None
        if context == COND:
            if sample is None:  # filled with NaN, so that reading it too early shows
                shape = latents.shape[0], self._denoiser.sample_channels, *latents.shape[2:]
                sample = latents.new_full(shape, float("nan"))
            self._to_fill = sample
            return sample
        waiting, self._to_fill = self._to_fill, None
        if waiting is None:
            raise ParallelError(
                "guidance in parallel: the unconditional sample was asked for before the conditional one, as no "
                "pipeline of diffusers does; leave out guidance_parallel"
            )
        cond, uncond = passes(waiting if sample is None else sample)
        if own == UNCOND:
            waiting.copy_(cond)
            self.state.fill(COND, cond)
        return uncond

    def _cond(self, given: Given, inputs: Inputs) -> Tensor:
        if self._waiting is not None:
            self._give_up("the unconditional sample of the step before was not asked for")
        if not self._guessing or self._uncond is None:
            return self._launch(inputs, COND)
        other = {**inputs, **self._uncond[1]}  # with the same latents and timestep
        if any(other[name].shape != inputs[name].shape for name in other):
            self._give_up("the conditions of both samples differ in shape")
            return self._launch(inputs, COND)
        both = {name: torch.cat((inputs[name], other[name])) for name in inputs}  # [2 B, ...]
        try:
            cond, uncond = self._launch(both, BOTH).chunk(2)  # [B, C, F, H, W] each
        except (DeviceOutOfMemory, torch.OutOfMemoryError) as error:
            self._give_up(str(error))
            return self._launch(inputs, COND)
        self._waiting = Snapshot(self._convert.of_step(given)), uncond
        return cond

    def _give_up(self, reason: str) -> None:
        self._guessing, self._waiting = False, None
        self.fallbacks.record(BATCHED_GUIDANCE, reason)

    def _launch(self, inputs: Inputs, context: str) -> Tensor:
        override, step = self.plan.override_at(self._step), self._step
        sample, routes = self._denoiser.run(
            inputs, self.plan.tau, override, self.plan.first + step
        )  # [B, C, F, H, W], [L, B, N]
        self.launches[context] += 1
        seen, self._seen = self._seen[-1:], self._seen[:-1]
        self._compare()  # timesteps and routes from before this launch; the GPU works on the launch meanwhile
        self._seen = seen
        known = {"tau": self.plan.tau, "route_override": override}
        run_again = {**inputs, **{name: value for name, value in known.items() if value is not None}}
        self._finite(sample, self.plan.first + step, self.plan.timesteps[step], context, run_again)
        if self.plan.routes is not None:
            self._routes.append((step, HostCopy(routes)))
        return sample

    # -- one launch later, and at the end ------------------------------------------------------------------------------

    def reset(self) -> None:
        """Ends a video: runs the pending checks, and drops all state that belongs to it."""
        if self.state.taken:
            self.finish()
        self._forget()

    def finish(self) -> None:
        """Runs the pending checks, and checks that all steps of the plan were taken."""
        self._compare()
        self._convert.finish()
        self._finite.finish()
        taken, steps = self.state.taken, len(self.plan.timesteps)
        if taken == 0 and self._videos:
            return
        if taken == steps or getattr(self._pipeline, "interrupt", False):
            self._videos += 1
            return
        self.fallbacks.record(
            "unfinished plan",
            f"{taken} of {steps} steps were asked of this transformer; plan as many as the pipeline samples with, give "
            f"it a second transformer only if the model has two, and pass pipeline= if you interrupt it on purpose",
        )

    def _forget(self) -> None:
        self.state.reset()
        self._convert.forget()
        self._guessing = self._batched
        self._uncond = self._waiting = self._timestep = self._cond_sample = self._to_fill = None
        self._seen, self._routes = [], []

    def _compare(self) -> None:
        seen, self._seen = self._seen, []
        for step, dtype, copy in seen:
            check_timestep(self.plan.timesteps, step, copy.wait().flatten().tolist(), dtype)
        routes, self._routes = self._routes, []
        for step, copy in routes:
            if departures := self.plan.departures(step, copy.wait()):
                layers, heads = self._denoiser.heads
                self.fallbacks.record(
                    "planned routes",
                    f"step {self.plan.first + step}, timestep {self.plan.timesteps[step]:g}: {departures} of "
                    f"{layers * heads} heads took another branch than planned",
                )
