# SPDX-License-Identifier: Apache-2.0
"""`StepWatch`: follows a request through its stages and steps, tells how far it is, and times the steps.

    watch = StepWatch(tell)     # tell(stage, steps that are done), which may raise to break the request off
    pipe.generate_each(prompts, on_video, params, on_step=watch.step, on_stage=watch.stage)
    watch.report()

A step's seconds are those until the next step begins. A GPU runs behind the host's launches, so they include waiting
for the step before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from vorta_trt.model.geometry import Branch
from vorta_trt.runtime.pipelines.planned import PlannedRequest

DENOISING = "denoising"
Tell = Callable[[str, int | None], None]  # the stage, and how many steps of all videos are done; None: as before


class StepWatch:
    """See the module.

    Args:
        tell: Called as every step and stage begins.
    """

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._began: tuple[float, str] | None = None  # the running computed step: its start, its expert
        self._seconds: dict[str, list[float]] = {}
        self._computed = self._reused = 0
        self._heads: dict[str, int] = {}

    def step(self, number: int, step: int, planned: PlannedRequest) -> None:
        """A step of a video begins; see `OnStep`."""
        self._end_step()
        expert = next(each for each in planned.experts if step < each.steps.first + len(each.steps.timesteps))
        own = step - expert.steps.first
        if expert.steps.compute[own]:
            self._computed += 1
            self._began = time.perf_counter(), expert.component
            if expert.steps.routes is not None:
                for branch in Branch:
                    taken = int(expert.steps.routes.takes(branch)[own].sum())
                    self._heads[branch.name.lower()] = self._heads.get(branch.name.lower(), 0) + taken
        else:
            self._reused += 1
        self._tell(DENOISING, number * len(planned.schedule.timesteps) + step)

    def stage(self, what: str, done: int = 0, of: int = 0) -> None:
        """Another stage begins, or goes on; see `OnStage`."""
        self._end_step()
        self._tell(what, None)

    def report(self) -> dict[str, Any]:
        """Numbers of computed and reused steps, seconds of computed ones by expert, numbers of heads by branch."""
        return {
            "computed": self._computed,
            "reused": self._reused,
            "seconds": self._seconds,
            "routed_heads": self._heads,
        }

    def _end_step(self) -> None:
        if self._began is not None:
            began, expert = self._began
            self._seconds.setdefault(expert, []).append(time.perf_counter() - began)
            self._began = None
