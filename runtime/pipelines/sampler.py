# SPDX-License-Identifier: Apache-2.0
"""`Sampler`: calls diffusers' pipeline by a plan, for one video after the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vorta_trt.runtime.fallbacks import Fallbacks
from vorta_trt.runtime.pipelines.planner import PlannedRequest, RequestPlanner
from vorta_trt.runtime.pipelines.transformer import VortaTransformer
from vorta_trt.runtime.sampling.params import GuidanceMode, SamplingParams

OnStep = Callable[[int, int, PlannedRequest], None]  # number of the video, the step that begins, the plan


@dataclass(frozen=True, eq=False)
class Sampled:
    """Attributes:
    output: of the pipeline, latents [1, C, F, H, W] or the video [1, F, 3, H, W] in [0, 1].
    launches: of the transformer. seconds: for both. fallbacks: what ran otherwise than asked for, in words.
    """

    output: Tensor
    launches: int
    seconds: float
    fallbacks: tuple[str, ...]


@dataclass(frozen=True)
class Sampler:
    """What the videos of one request have in common.

    Args:
        seed: of the noise, on the CPU, whatever the device. locate, fallbacks: see `VortaTransformer.request`.
        on_step: called as every step begins; may raise to stop the request.
    """

    planner: RequestPlanner
    params: SamplingParams
    planned: PlannedRequest
    seed: int
    fallbacks: Fallbacks
    locate: bool | None = None
    on_step: OnStep | None = None

    def __call__(
        self, number: int, pipeline: Any, transformer: VortaTransformer, output_type: str, **arguments: Any
    ) -> Sampled:
        """Video number `number` of the request.

        Args:
            pipeline: with `transformer` in it. output_type, arguments: of its call; "pt" or "latent", and the prompt.
        """
        began, before = time.perf_counter(), dict(self.fallbacks.counts)
        steps = self.planned.steps
        if steps.routes is None:
            self.fallbacks.record("planned routes", f"{self.planner.name} does not hold its timestep path")
        frames, height, width = self.planner.size
        scheduler = self.planned.schedule.instance
        generator = torch.Generator().manual_seed(self.seed)
        if hasattr(scheduler, "generator"):
            scheduler.generator = generator
        pipeline.scheduler = scheduler
        on_step = self.on_step
        request = transformer.request(
            steps,
            guidance=self.params.guidance_batching if self.planned.passes > 1 else GuidanceMode.SEQUENTIAL,
            fallbacks=self.fallbacks,
            locate=self.locate,
            on_step=None if on_step is None else lambda step: on_step(number, step, self.planned),
        )
        with request as following:
            output = pipeline(
                num_frames=frames,
                height=height,
                width=width,
                num_inference_steps=len(steps.timesteps),
                generator=generator,
                output_type=output_type,
                **arguments,
            ).frames
        told = (
            f"{kind}: {count - before.get(kind, 0)} times"
            for kind, count in sorted(self.fallbacks.counts.items())
            if count > before.get(kind, 0)
        )
        return Sampled(output, following.launches.total(), time.perf_counter() - began, tuple(told))
