# SPDX-License-Identifier: Apache-2.0
"""Sampling loops: the real scheduler, a step plan, and the transformer of a case.

A loop of many steps is not run to its end: a window of its steps is run and timed, and the time of the whole is
extrapolated from the median times of computed and reused steps. Loops of few steps are run whole.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vorta_trt.benchmarks.step.cases import StepCase
from vorta_trt.benchmarks.step.models import Run
from vorta_trt.benchmarks.step.report import LoopRow
from vorta_trt.model.families import get_family
from vorta_trt.runtime.pipelines.request import StepState
from vorta_trt.runtime.sampling.step_plan import StepPlan

MEASURED_STEPS = 10  # of a loop that is not run whole


@dataclass(frozen=True)
class Loop:
    """A schedule to sample with.

    Args:
        name: Name in the report.
        plan: Plan of its steps.
        passes: Passes of the transformer in a computed step.
        count: Number of steps that are run, from the first on.
        note: Note for the report.
    """

    name: str
    plan: StepPlan
    passes: int
    count: int
    note: str = ""

    @property
    def whole(self) -> bool:
        """Whether every step of the schedule is run."""
        return self.count >= len(self.plan.timesteps)


def scheduler_of(case: StepCase, steps: int) -> Any:
    """The pipeline's scheduler of the case's family, with its timesteps set."""
    import diffusers

    if get_family(case.family).gives_sigmas:
        euler: Any = diffusers.FlowMatchEulerDiscreteScheduler(shift=case.shift)  # type: ignore[no-untyped-call]
        euler.set_timesteps(sigmas=[1 - step / steps for step in range(steps)])
        return euler
    unipc: Any = diffusers.UniPCMultistepScheduler(  # type: ignore[no-untyped-call]
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=case.shift
    )
    unipc.set_timesteps(steps)
    return unipc


def run_loop(case: StepCase, loop: Loop, run: Run, latents: Tensor, routes: str) -> LoopRow:
    """Samples from `latents` [1, C, F, H, W]; raises ValueError where no step of the window is computed."""
    scheduler = scheduler_of(case, len(loop.plan.timesteps))
    state = StepState(loop.plan)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for step in range(loop.count):
        _synchronize(latents.device)
        start = time.perf_counter()
        launch = functools.partial(_launch, loop.plan, run)
        samples = [state.sample(f"pass {number}", launch) for number in range(loop.passes)]
        guided = samples[0] if loop.passes == 1 else samples[1] + 5.0 * (samples[0] - samples[1])
        latents = scheduler.step(guided, scheduler.timesteps[step], latents, return_dict=False)[0].to(latents.dtype)
        _synchronize(latents.device)
        seconds[loop.plan.compute[step]].append(time.perf_counter() - start)
    if not seconds[True]:
        raise ValueError(f"loop {loop.name}: none of its first {loop.count} steps is computed; measure more")
    return _row(loop, seconds[True], seconds[False], routes)


def _launch(plan: StepPlan, run: Run, step: int) -> Tensor | None:
    return run(plan.timesteps[step]) if plan.compute[step] else None


def _row(loop: Loop, computed: Sequence[float], reused: Sequence[float], routes: str) -> LoopRow:
    steps, runs = len(loop.plan.timesteps), loop.plan.computed_steps
    each, skipped = statistics.median(computed), statistics.median(reused) if reused else None
    total = sum(computed) + sum(reused) if loop.whole else runs * each + (steps - runs) * (skipped or 0.0)
    return LoopRow(
        name=loop.name,
        routes=routes,
        steps=steps,
        computed=runs,
        passes=loop.passes,
        measured=loop.count,
        measured_computed=len(computed),
        computed_seconds=round(each, 4),
        reused_seconds=None if skipped is None else round(skipped, 5),
        seconds=round(total, 3),
        extrapolated=not loop.whole,
        note=loop.note,
    )


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
