# SPDX-License-Identifier: Apache-2.0
"""Schedules of few given steps, as distilled models are sampled with, for pipelines that would choose their own.

schedule = fixed_schedule(sigmas_of([1000, 757, 522]), renoise=True)
pipe.scheduler = schedule.instance
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

from vorta_trt.model.constants import TRAIN_TIMESTEPS
from vorta_trt.runtime.schedules import Schedule


class FixedFlowSchedule(FlowMatchEulerDiscreteScheduler):
    """Euler steps of flow matching at given sigmas, whatever number of steps the pipeline asks for.

    Attributes:
        fixed_sigmas: falling, from at most 1 to above 0; the last step goes to 0.
        generator: of the noise that is added after every step, if the config has `stochastic_sampling`.
    """

    fixed_sigmas: tuple[float, ...] = (1.0,)
    generator: torch.Generator | None = None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        sigmas: list[float] | None = None,
        mu: float | None = None,
        timesteps: list[float] | None = None,
    ) -> None:
        given = [TRAIN_TIMESTEPS * sigma for sigma in self.fixed_sigmas]
        super().set_timesteps(sigmas=list(self.fixed_sigmas), timesteps=given, device=device)

    def step(self, *arguments: Any, **options: Any) -> Any:
        return super().step(*arguments, **{"generator": self.generator, **options})


def fixed_schedule(sigmas: Sequence[float], *, renoise: bool = False) -> Schedule:
    """Steps at exactly these sigmas; nothing is shifted.

    Args:
        renoise: after every step take the video that the model predicts and add fresh noise, which is how models of
            distribution matching distillation (DMD) are sampled; otherwise an Euler step.
    Raises: ValueError, unless sigmas fall from at most 1 to above 0.
    """
    falling = all(before > after for before, after in zip(sigmas, sigmas[1:], strict=False))
    if not sigmas or not falling or not 0 < sigmas[-1] <= sigmas[0] <= 1:
        raise ValueError(
            f"sigmas {', '.join(f'{sigma:g}' for sigma in sigmas) or 'none'}: must fall from at most 1 to above 0; use "
            f"e.g. 1,0.757,0.522, which are timesteps 1000,757,522"
        )
    instance: Any = FixedFlowSchedule(shift=1.0, stochastic_sampling=renoise)
    instance.fixed_sigmas = tuple(map(float, sigmas))
    instance.set_timesteps()
    return Schedule(type(instance).__name__, None, tuple(float(timestep) for timestep in instance.timesteps), instance)
