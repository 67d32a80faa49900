# SPDX-License-Identifier: Apache-2.0
"""`SamplingParams`: how a video is sampled, apart from its prompt; the same for Python, the command line and JSON.

    params = SamplingParams(num_inference_steps=30, cache="tea", dense_first=2, seed=1)
    SamplingParams.model_validate_json(params.model_dump_json()) == params

Names are those of diffusers' pipelines. What depends on the model (its guidance, its schedule) is checked when a
request is planned, see `RequestPlanner.plan`. This module imports neither torch nor diffusers.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from vorta_trt.model.constants import TRAIN_TIMESTEPS
from vorta_trt.runtime.sampling.step_broadcast import StepBroadcast
from vorta_trt.runtime.sampling.tea_cache import TeaCache
from vorta_trt.runtime.schedules import FLOW_EULER, SCHEDULERS

if TYPE_CHECKING:
    from vorta_trt.runtime.sampling.route_guards import RouteGuards

DEFAULT_STEPS = 50
LARGEST_SEED = 2**64 - 1  # the largest that torch.Generator.manual_seed takes
LARGEST_SCALE = 1000.0  # limit of guidance scales and the flow shift; far above what models use, far below an overflow


class GuidanceMode(str, Enum):
    """Whether both samples of classifier-free guidance share a launch.

    AUTO: batched where the engine's optimization profile and the memory allow. BATCHED: where they do not, the samples
    run one after the other, a counted fallback. SEQUENTIAL: always one after the other.
    """

    AUTO = "auto"
    BATCHED = "batched"
    SEQUENTIAL = "sequential"


def _by_name(cache: Any) -> Any:
    return {"method": cache} if isinstance(cache, str) else cache


Cache = Annotated[Annotated[TeaCache | StepBroadcast, Field(discriminator="method")] | None, BeforeValidator(_by_name)]


class SamplingParams(BaseModel):
    """How to sample. Everything has the default of the model's diffusers pipeline, or is off."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, validate_default=True
    )

    num_inference_steps: int = Field(default=DEFAULT_STEPS, ge=1, le=TRAIN_TIMESTEPS)
    """How many steps are sampled; where `sigmas` or `timesteps` are given, as many as there are."""
    scheduler: str | None = None
    """The scheduler: unipc, flow-euler or dpm++; None is the pipeline's own, or flow-euler for given steps."""
    flow_shift: float | None = Field(default=None, ge=1 / LARGEST_SCALE, le=LARGEST_SCALE)
    """The flow shift of the schedule; None is the pipeline's own."""
    sigmas: tuple[float, ...] | None = None
    """Sample at exactly these sigmas, which fall from at most 1 to above 0 and are not shifted."""
    timesteps: tuple[float, ...] | None = None
    """Sample at exactly these timesteps, which fall from at most 1000 to above 0."""
    renoise: bool = False
    """Add fresh noise after each given step, as DMD-distilled models want."""
    guidance_scale: float | None = Field(default=None, ge=0, le=LARGEST_SCALE)
    """The scale of guidance; None is the pipeline's own, or 1 (off) for given steps without a named scheduler."""
    guidance_scale_2: float | None = Field(default=None, ge=0, le=LARGEST_SCALE)
    """The scale of guidance of the second expert, for models with two."""
    true_cfg_scale: float = Field(default=1.0, ge=1, le=LARGEST_SCALE)
    """The scale of classifier-free guidance, for models whose `guidance_scale` is an input; 1 is off."""
    negative_prompt: str | None = None
    """What classifier-free guidance leads away from; None is the empty prompt."""
    seed: int | None = Field(default=None, ge=0, le=LARGEST_SEED)
    """The seed of the noise, which is drawn on the CPU whatever the device; None is a fresh one."""
    guidance_batching: GuidanceMode = GuidanceMode.AUTO
    """Whether both samples of classifier-free guidance share a launch."""
    cache: Cache = None
    """Skip steps and reuse the last sample: tea (TeaCache) where the timestep embedding changed little; broadcast all
    but every k-th step in a range of timesteps; None is to compute every step."""
    dense_first: int = Field(default=0, ge=0)
    """How many first steps have full attention in all layers."""
    dense_last: int = Field(default=0, ge=0)
    """How many last steps have full attention in all layers."""
    dense_layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Layers with full attention at every step, counted over all stacks of blocks."""
    tau: float | None = Field(default=None, ge=-LARGEST_SCALE, le=LARGEST_SCALE)
    """The routing threshold, above 1 every head is full; None is the model's own."""

    @model_validator(mode="before")
    @classmethod
    def _count_given_steps(cls, values: Any) -> Any:
        """Sets `num_inference_steps` to the number of given steps unless it is given; arrays of steps become lists."""
        if not isinstance(values, dict):
            return values
        values = {name: _as_list(value) if name in ("sigmas", "timesteps") else value for name, value in values.items()}
        if values.get("num_inference_steps") is not None:
            return values
        values.pop("num_inference_steps", None)
        for name in ("sigmas", "timesteps"):
            if isinstance(values.get(name), list | tuple) and values[name]:
                values["num_inference_steps"] = len(values[name])
        return values

    @model_validator(mode="after")
    def _check_schedule(self) -> SamplingParams:
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            raise ValueError(f"scheduler {self.scheduler!r}: must be one of {', '.join(SCHEDULERS)}")
        if self.sigmas is not None and self.timesteps is not None:
            raise ValueError("sigmas and timesteps: are the same steps twice; give one of them")
        if not self.gives_steps:
            if self.renoise:
                raise ValueError("renoise True: needs given steps; give sigmas or timesteps, or leave it out")
            return self
        name: Literal["sigmas", "timesteps"] = "timesteps" if self.sigmas is None else "sigmas"
        _check_falling(name, getattr(self, name), 1 if name == "sigmas" else TRAIN_TIMESTEPS)
        if self.num_inference_steps != len(getattr(self, name)):
            raise ValueError(
                f"num_inference_steps {self.num_inference_steps}: the {len(getattr(self, name))} {name} given are the "
                f"steps; leave it out"
            )
        if self.flow_shift is not None:
            raise ValueError(f"flow_shift {self.flow_shift:g}: given {name} are not shifted; leave it out")
        if self.renoise and self.scheduler not in (None, FLOW_EULER):
            raise ValueError(f"renoise True: only {FLOW_EULER} adds noise after a step; leave out scheduler or renoise")
        return self

    @property
    def gives_steps(self) -> bool:
        """Whether the steps themselves are given, as `sigmas` or `timesteps`."""
        return self.sigmas is not None or self.timesteps is not None

    def updated(self, **changes: Any) -> SamplingParams:
        """A copy of these parameters with some changed; all are checked again."""
        values = {name: getattr(self, name) for name in self.model_fields_set}
        if self.gives_steps:
            values.pop("num_inference_steps", None)  # counted anew from the given steps
        return SamplingParams(**(values | changes))

    @property
    def guards(self) -> RouteGuards:
        """`dense_first`, `dense_last` and `dense_layers` together."""
        from vorta_trt.runtime.sampling.route_guards import RouteGuards

        return RouteGuards(self.dense_first, self.dense_last, self.dense_layers)


def _as_list(steps: Any) -> Any:
    """Converts arrays, tensors, ranges and iterators to lists; returns anything else unchanged."""
    if hasattr(steps, "tolist"):
        return steps.tolist()
    return list(steps) if isinstance(steps, range | Iterator) else steps


def _check_falling(name: str, steps: tuple[float, ...], highest: int) -> None:
    falling = all(before > after for before, after in zip(steps, steps[1:], strict=False))
    if not steps or not falling or not 0 < steps[-1] <= steps[0] <= highest:
        examples = {"sigmas": "1,0.757,0.522", "timesteps": "1000,757,522"}
        raise ValueError(
            f"{name} {', '.join(f'{step:g}' for step in steps) or 'none'}: must fall from at most {highest} to above "
            f"0; use e.g. {examples[name]}"
        )
