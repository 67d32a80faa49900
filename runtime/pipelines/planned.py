# SPDX-License-Identifier: Apache-2.0
"""`PlannedRequest`: the schedule of a request, and which transformer computes which step."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vorta_trt.model.constants import COMPONENTS
from vorta_trt.model.experts import NOISE, boundary_timestep, in_words
from vorta_trt.runtime.sampling.step_plan import StepPlan
from vorta_trt.runtime.schedules import Schedule


@dataclass(frozen=True)
class ExpertPlan:
    """What one transformer does in a request.

    Attributes:
        component: "transformer", or "transformer_2" for the second of two experts.
        steps: The plan of its steps.
        passes: Samples per step: 2 with classifier-free guidance.
        guidance_scale: Guidance scale of this transformer; None where the pipeline has another kind of guidance.
    """

    component: str
    steps: StepPlan
    passes: int
    guidance_scale: float | None

    def to_dict(self) -> dict[str, Any]:
        """The steps that the transformer takes, as an object for JSON."""
        return {
            "component": self.component,
            "first_step": self.steps.first,
            "steps": len(self.steps.timesteps),
            "computed_steps": self.steps.computed_steps,
            "passes": self.passes,
            "guidance_scale": self.guidance_scale,
        }

    def line(self) -> str:
        """The steps that the transformer takes, as text."""
        first, timesteps = self.steps.first, self.steps.timesteps
        guidance = "" if self.guidance_scale is None else f", guidance {self.guidance_scale:g}"
        return (
            f"{in_words([self.component])}: steps {first} to {first + len(timesteps) - 1}, timesteps "
            f"{timesteps[0]:.1f} to {timesteps[-1]:.1f}{guidance}, {self.passes} pass{'es' if self.passes > 1 else ''}"
        )


@dataclass(frozen=True)
class PlannedRequest:
    """What will be sampled.

    Attributes:
        schedule: The scheduler and its timesteps.
        experts: The plan of each transformer, in the order in which they run. An expert without any step is left out.
        boundary_ratio: The second of two experts runs at timesteps below 1000 times this ratio; None for a model with
            one transformer.
    """

    schedule: Schedule
    experts: tuple[ExpertPlan, ...]
    boundary_ratio: float | None = None

    @cached_property
    def steps(self) -> StepPlan:
        """The plan of all steps of the schedule, over all transformers."""
        return StepPlan.joined([expert.steps for expert in self.experts])

    @property
    def passes(self) -> int:
        """The largest number of samples per step of any transformer."""
        return max(expert.passes for expert in self.experts)

    @property
    def guided(self) -> bool:
        """Whether there is classifier-free guidance."""
        return self.passes > 1

    def lines(self) -> list[str]:
        """The plan as text."""
        if self.boundary_ratio is None:
            return [str(self.schedule), *self.steps.lines()]
        labels = [NOISE[expert.component] for expert in self.experts for _ in expert.steps.timesteps]
        idle = [component for component in COMPONENTS if component not in [each.component for each in self.experts]]
        return [
            f"{self.schedule}, experts switch at timestep {boundary_timestep(self.boundary_ratio):g}",
            *(expert.line() for expert in self.experts),
            *(f"{in_words([component])}: no step of this schedule" for component in idle),
            *self.steps.lines(labels),
        ]

    def to_dict(self) -> dict[str, Any]:
        """The plan as an object for JSON."""
        return {
            "scheduler": self.schedule.scheduler,
            "shift": self.schedule.shift,
            "passes": self.passes,
            "boundary_ratio": self.boundary_ratio,
            "experts": [expert.to_dict() for expert in self.experts],
            "plan": json.loads(self.steps.to_json()),
        }
