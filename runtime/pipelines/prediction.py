# SPDX-License-Identifier: Apache-2.0
"""`Prediction`: memory and time that a request needs on several GPUs, predicted without loading anything."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from vorta_trt.runtime.memory_parts import holds_parts
from vorta_trt.runtime.memory_plan import MemoryPlan, plan_memory
from vorta_trt.runtime.parallel.rank_plan import RankPlan, plan_ranks
from vorta_trt.runtime.parallel.rates import PassWork
from vorta_trt.runtime.pipelines.making import MakeVideos, layout_of
from vorta_trt.runtime.pipelines.planned import PlannedRequest
from vorta_trt.runtime.pipelines.planner import RequestPlanner
from vorta_trt.runtime.sampling.cost import StepProfile


class Prediction(BaseModel):
    """The predicted memory and time of a request.

    Attributes:
        memory: Memory plan of the first GPU, which also holds the text encoder. Two experts count as loaded together.
        gpus: Predicted seconds on several GPUs; None for one GPU, and where routes are not known.
    """

    memory: MemoryPlan
    gpus: RankPlan | None

    def lines(self) -> Iterator[str]:
        """Time and memory as text."""
        yield from () if self.gpus is None else self.gpus.lines()
        yield from self.memory.lines()


def predict(
    request: MakeVideos,
    planner: RequestPlanner,
    planned: PlannedRequest,
    gpus: int,
    profile: StepProfile | None = None,
) -> Prediction:
    """Predicts a request.

    Args:
        request: The videos to make.
        planner: Planner of the request.
        planned: Plan of the request.
        gpus: Number of GPUs that make each video together.
        profile: Measured seconds of a pass on one GPU.

    Raises:
        ValueError: The request cannot run on that many GPUs; see `choose_layout`.
    """
    layout = layout_of(request, planner, planned, gpus)
    folder = planner.checkpoint
    first, *second = (expert.runs for expert in planner.experts)
    memory = plan_memory(
        first,
        folder if folder is not None and holds_parts(folder) else None,
        cards=(),
        second=second[0] if second else None,
        gpus=layout.sharing,
        guidance=layout.guidance,
        passes=planned.passes,
        vae_precision=request.pipeline.get("vae_precision"),
        compile_vae=bool(request.pipeline.get("compile_vae", False)),
    )
    steps = planned.steps
    if gpus == 1 or steps.routes is None or steps.cost is None:
        return Prediction(memory=memory, gpus=None)
    seconds = plan_ranks(
        PassWork.of(planner.experts[0].described),
        steps.routes.routes,
        ulysses=layout.sharing,
        guidance=layout.guidance,
        passes=steps.cost.passes,
        compute=steps.compute,
        profile=profile,
    )
    return Prediction(memory=memory, gpus=seconds)
