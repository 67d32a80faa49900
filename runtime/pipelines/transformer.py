# SPDX-License-Identifier: Apache-2.0
"""`VortaTransformer`: a bundle, an ONNX file or a routed model in place of the transformer in diffusers' pipelines.

    pipe.transformer = VortaTransformer.from_pretrained("model.bundle")

Every call of the pipeline is one launch, with the model's own tau and routes: its router's, or the calibrated ones of
its bundle. `pipe.transformer.enable_cache("broadcast", dense_first=2)` makes a plan for every video. To see the plan
before sampling, and to get reports of what happened, make the plan yourself

    plan = pipe.transformer.plan(timesteps, cache=StepBroadcast(), guards=RouteGuards(dense_first=2))
    with pipe.transformer.request(plan) as request:
        pipe(prompt)

and call the pipeline any number of times in the `with` block. For a model with two experts

    pipe.transformer, pipe.transformer_2 = map(VortaTransformer.from_pretrained, (high, low))

each expert plans, and follows, its own part of the schedule.

The object holds the state of a request. So each pipeline needs its own `VortaTransformer`, which only one thread may
use at a time. Several `VortaTransformer`s may share an `Engine`.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from vorta_trt.model.constants import TRANSFORMER
from vorta_trt.model.experts import in_words, steps_of_experts, timesteps_of_expert
from vorta_trt.model.families import get_family
from vorta_trt.model.pipeline_folder import LOADING
from vorta_trt.model.transformer import RoutedTransformer
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime.engine import Engine
from vorta_trt.runtime.fallbacks import Fallbacks
from vorta_trt.runtime.parallel.ranks import PassExchange
from vorta_trt.runtime.pipelines.denoiser import Denoiser, EngineDenoiser, TorchDenoiser, use_batched_guidance
from vorta_trt.runtime.pipelines.inputs import Given, ModelInputs, Snapshot, memory_of
from vorta_trt.runtime.pipelines.refusals import Refusals
from vorta_trt.runtime.pipelines.request import COND, UNCOND, OnLatents, OnStep, Request
from vorta_trt.runtime.pipelines.timesteps import of_schedule
from vorta_trt.runtime.sampling.params import GuidanceMode, SamplingParams
from vorta_trt.runtime.sampling.step_plan import StepPlan, plan_steps

if TYPE_CHECKING:
    from vorta_trt.engines.bundle import Bundle
    from vorta_trt.model.route_calibration import RouteCalibration
    from vorta_trt.model.timestep_path import TimestepPath

logger = logging.getLogger(__name__)
PREDICTION = "pred_"  # prefix of the names that diffusers' guiders give their contexts
_PRECISION = "build or load it in another precision if you need that"


class VortaTransformer(Refusals, ModelMixin, ConfigMixin):
    """A diffusers model. Pipelines use its config, dtype, device, `cache_context` and `forward`.

    Make it with `from_pretrained`. `to` moves a routed model to a device; an engine stays on its GPU. Neither changes
    its precision. With `pipe.enable_model_cpu_offload()` and `pipe.enable_sequential_cpu_offload()`, text encoders and
    VAE leave the GPU between uses, and an engine stays. A routed model moves with `enable_model_cpu_offload` and
    refuses `enable_sequential_cpu_offload`. `torch.compile` does not trace into it; a routed model may be compiled
    itself.

    Attributes:
        denoiser: Launches the transformer.
        fallbacks: Counts what ran otherwise than asked for.
    """

    config_name = "config.json"  # type: ignore[assignment]

    def __init__(self, denoiser: Denoiser, fallbacks: Fallbacks | None = None, engine: Engine | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.denoiser = denoiser
        self.fallbacks = fallbacks or Fallbacks()
        self._engine = engine  # the engine that `close` closes
        self._convert = ModelInputs(denoiser)
        self._request: Request | None = None
        self._cached: dict[str, Any] | None = None  # options of `enable_cache`
        self._own: Request | None = None  # the request that `enable_cache` leads to
        # The last schedule: its tensor, the tensor's version counter, its values, its calibrated routes.
        self._looked_up: tuple[Tensor, int, list[float], Tensor | None] | None = None
        self._context: str | None = None  # the name that `cache_context` was given
        self._unnamed: Snapshot | None = None  # latents and timestep of the last call outside of `cache_context`
        self._family = get_family(denoiser.family)
        self._names = [spec.name for spec in self._family.inputs(denoiser.config)]
        self._signature = inspect.signature(self._family.diffusers_transformer().forward)
        if isinstance(denoiser, TorchDenoiser):
            self.model = denoiser.model  # as a submodule, its parameters move with this module
        else:
            # Offloading reads a module's device from its parameters. This parameter has no element.
            with LOADING:
                self.place = nn.Parameter(torch.empty(0, dtype=denoiser.dtype), requires_grad=False)
        self.register_to_config(**denoiser.config)  # type: ignore[no-untyped-call]

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        source: str | Path | Bundle | Engine | RoutedTransformer,
        *,
        fallbacks: Fallbacks | None = None,
        **engine: Any,
    ) -> VortaTransformer:
        """Loads a bundle or an exported ONNX file, or takes a model in torch.

        Args:
            source: A bundle, or the path of a bundle or an ONNX file: its engine is opened here, and `close` closes it.
                Or an open `Engine`, which the caller closes. Or a routed model, which is not copied; it runs on a GPU
                with our kernels and without TensorRT, or on the CPU. A routed model without a geometry takes every
                latent size.
            fallbacks: Counts what runs otherwise than asked for, or refuses it (`Fallbacks(strict=True)`); None takes
                those of the engine.
            engine: Options of `Engine`: executor, device, verify, ...

        Raises:
            VortaError: `vorta-trt export` did not write the file, or `Engine` raises it.
            ValueError: Options of an engine are given with a routed model or an open engine.
        """
        if isinstance(source, RoutedTransformer | Engine) and engine:
            raise ValueError(f"{', '.join(engine)}: an open engine and a routed model run where they are; leave it out")
        if isinstance(source, RoutedTransformer):
            return cls(TorchDenoiser(source), fallbacks)
        if isinstance(source, Engine):
            return cls(EngineDenoiser(source), fallbacks or source.fallbacks)
        opened = Engine(source, fallbacks=fallbacks, **engine)
        try:
            return cls(EngineDenoiser(opened), opened.fallbacks, opened)
        except BaseException:
            opened.close()
            raise

    # -- plans and requests --------------------------------------------------------------------------------------------

    @cached_property
    def timestep_path(self) -> TimestepPath | None:
        """Timestep embedder and routers, from which plans compute their routes; None if they are not available."""
        return self.denoiser.timestep_path()

    @cached_property
    def calibration(self) -> RouteCalibration | None:
        """Calibrated routes of the bundle, by timestep; None if it has none."""
        return self.denoiser.calibration()

    def plan(self, timesteps: Iterable[float] | Tensor, **options: Any) -> StepPlan:
        """Calls `plan_steps` with the data of this model. One of two experts plans only its part of the schedule.

        Args:
            timesteps: All timesteps that the pipeline will sample with, in order; see `schedule_timesteps`.
            options: Options of `plan_steps`: cache, guards, tau, ... By default, `calibrated` has the bundle's
                calibrated routes (None lets the router decide), and timesteps are rounded as the family's pipeline does
                with its own scheduler.
        """
        timesteps = timesteps if isinstance(timesteps, Tensor) else list(timesteps)
        options.setdefault("part", self._part(timesteps))
        if self.calibration is not None:
            options.setdefault("calibrated", self.calibration.overrides(timesteps))
        rounded = self._family.gives_sigmas
        options.setdefault("timestep_dtype", self.dtype if rounded else torch.float32)
        return plan_steps(timesteps, path=self.timestep_path, heads=self.denoiser.heads, **options)

    def _part(self, timesteps: Sequence[float] | Tensor) -> range | None:
        """The range of a schedule's steps that this transformer takes; None for all steps.

        Raises:
            ValueError: The transformer takes none of the steps.
        """
        ratio, component = self.denoiser.boundary_ratio, self.denoiser.component
        if ratio is None:
            return None
        given = timesteps.tolist() if isinstance(timesteps, Tensor) else [float(timestep) for timestep in timesteps]
        part = steps_of_experts(given, ratio).get(component)
        if part is None:
            high, low = timesteps_of_expert(component, ratio)
            raise ValueError(
                f"timesteps {max(given):g} to {min(given):g}: none is of {in_words([component])}, which takes {high:g} "
                f"to {low:g}; leave its plan out, or take more steps"
            )
        return part

    @contextmanager
    def request(
        self,
        plan: StepPlan,
        *,
        guidance: GuidanceMode = GuidanceMode.SEQUENTIAL,
        guided: bool = True,
        fallbacks: Fallbacks | None = None,
        locate: bool | None = None,
        on_step: OnStep | None = None,
        pipeline: Any = None,
        passes: PassExchange | None = None,
        on_latents: OnLatents | None = None,
    ) -> Iterator[Request]:
        """A context in which the pipeline's calls follow a plan, and samples that are not finite stop the run.

        Args:
            plan: Plan of the schedule that the pipeline samples with. A video that does not take all its steps counts
                as a fallback.
            guidance: Whether both samples of classifier-free guidance share a launch. Shared launches change samples
                by rounding.
            guided: False where this transformer's guidance scale is 1 although the pipeline asks for both samples. The
                unconditional sample then cancels out, and is not computed.
            fallbacks: Counts what runs otherwise than asked for; None takes those of this transformer.
            locate: Whether to look for the layer in which values became non-finite, by running the step again on the
                CPU. None does so only where the model runs on the CPU anyway.
            on_step: Called with the number of every step as it begins; may raise to stop the run.
            pipeline: The pipeline of diffusers. Give it if you may set its `interrupt`: then steps that are not taken
                are no fallback.
            passes: Exchanges the samples, with guidance in parallel; see `Request`.
            on_latents: Called with the number and the latents of every step as it begins.

        Raises:
            RuntimeError: Another request has not ended.
            FallbackError: Something would run otherwise than asked for, in strict mode.
        """
        if self._request is not None:
            raise RuntimeError("request: another one has not ended; one transformer follows one plan at a time")
        self._request = self._follow(
            plan, guidance, fallbacks or self.fallbacks, locate, on_step, pipeline, guided, passes, on_latents
        )
        try:
            yield self._request
            self._request.finish()
        finally:
            self._request = self._unnamed = None
            self._convert.forget()

    def enable_cache(self, config: Any = None, **changes: Any) -> None:
        """Plans every video that a pipeline samples from now on, until `disable_cache` is called.

        Args:
            config: "tea" or "broadcast", a `TeaCache` or a `StepBroadcast`. None caches nothing, and is for guards
                alone.
            changes: `tau`, `dense_first`, `dense_last`, `dense_layers`, `guidance_batching`, as in `SamplingParams`.

        Raises:
            ValueError: `changes` has another name, or a value is invalid (pydantic's ValidationError). Only whole steps
                can be cached, nothing inside an engine.
        """
        if other := changes.keys() - {"tau", "dense_first", "dense_last", "dense_layers", "guidance_batching"}:
            raise ValueError(
                f"{', '.join(sorted(other))}: not of enable_cache; it takes tau, dense_first, dense_last, "
                f"dense_layers and guidance_batching"
            )
        params = SamplingParams(cache=config, **changes)
        self._own, self._cached = (
            None,
            {
                "options": {"cache": params.cache, "guards": params.guards, "tau": params.tau},
                "guidance": params.guidance_batching if "guidance_batching" in changes else GuidanceMode.SEQUENTIAL,
            },
        )

    def disable_cache(self) -> None:
        """Ends the planning of `enable_cache`: every call launches the model again, with its own tau and routes."""
        self._own = self._cached = None

    @property
    def is_cache_enabled(self) -> bool:
        """Whether `enable_cache` is in effect."""
        return self._cached is not None

    def _follow(
        self,
        plan: StepPlan,
        guidance: GuidanceMode,
        fallbacks: Fallbacks,
        locate: bool | None = None,
        on_step: OnStep | None = None,
        pipeline: Any = None,
        guided: bool = True,
        passes: PassExchange | None = None,
        on_latents: OnLatents | None = None,
    ) -> Request:
        batched = guided and passes is None and use_batched_guidance(self.denoiser, guidance, fallbacks)
        return Request(
            self.denoiser,
            self._convert,
            plan,
            batched=batched,
            guided=guided,
            fallbacks=fallbacks,
            locate=self.denoiser.on_cpu if locate is None else locate,
            on_step=on_step,
            pipeline=pipeline,
            passes=passes,
            on_latents=on_latents,
        )

    def _planned(self, timestep: Tensor, cached: dict[str, Any], context: str) -> Request:
        """The request of `enable_cache`. The schedule is read when a video begins, which waits once for a GPU."""
        schedule = memory_of(timestep) if context == COND else None
        if schedule is not None and self._may_begin(timestep, len(schedule)):
            plan = self.plan(schedule, **cached["options"])
            known = None if self._own is None else (self._own.plan.timesteps, self._own.plan.first)
            if timestep.storage_offset() == plan.first and known != (plan.timesteps, plan.first):
                self._own = self._follow(plan, cached["guidance"], self.fallbacks)
        if self._own is None:
            raise VortaError(
                "enable_cache: the pipeline's schedule cannot be seen from its first timestep; plan with the "
                "scheduler's timesteps, and sample in `with pipe.transformer.request(plan)`"
            )
        return self._own

    def _may_begin(self, timestep: Tensor, steps: int) -> bool:
        """Whether a video may begin at this timestep.

        For the first transformer it is the first timestep of the schedule. For the second expert it is any timestep, or
        during a video the first one of its plan or one of another schedule.
        """
        if self.denoiser.component == TRANSFORMER or self._own is None or self._own.state.is_done():
            return timestep.storage_offset() == 0 or self.denoiser.component != TRANSFORMER
        plan = self._own.plan
        return steps != plan.schedule_steps or timestep.storage_offset() == plan.first

    # -- what a pipeline calls -----------------------------------------------------------------------------------------

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # dynamo cannot trace engines and counters
    def forward(self, *arguments: Any, **named: Any) -> tuple[Tensor] | Transformer2DModelOutput:
        """Takes the arguments of the family's diffusers model: hidden_states [B, C, F, H, W], timestep [B], ...

        Returns:
            The sample, [B, C, F, H, W] in the type of hidden_states.
        """
        given = dict(self._signature.bind(self, *arguments, **named).arguments)
        given.pop(next(iter(self._signature.parameters)))  # self
        given = self._family.model_arguments(given)
        return_dict = given.pop("return_dict", True)
        if attention_kwargs := given.pop("attention_kwargs", None):
            raise VortaError(
                f"attention_kwargs {attention_kwargs}: must be empty; a LoRA scale, or anything else of attention "
                f"processors, has no effect on weights that are built in; fuse the LoRA before building"
            )
        if unknown := [name for name, value in given.items() if value is not None and name not in self._names]:
            raise VortaError(f"{unknown[0]}: this model takes {', '.join(self._names)}; leave it out")
        if any(parameter.is_meta for parameter in self.parameters()) and isinstance(self.denoiser, TorchDenoiser):
            raise VortaError(
                "enable_sequential_cpu_offload: takes a routed model's weights away one by one, and it needs them "
                "together; use pipe.enable_model_cpu_offload()"
            )
        latents = given["hidden_states"]
        sample = self._sample({name: given.get(name) for name in self._names}).to(latents.device, latents.dtype)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _sample(self, given: Given) -> Tensor:
        timestep = given["timestep"]
        assert timestep is not None
        context, request = self._context_of(given), self._request
        if request is None and self._cached is not None:
            request = self._planned(timestep, self._cached, context)
        if request is not None:
            return request.sample(context, given)
        routes = self._own_routes(timestep)
        return self.denoiser.run(self._convert(given, context), None, routes)[0]  # [B, C, F, H, W]

    def _context_of(self, given: Given) -> str:
        """The context of a call: as `cache_context` says, or guessed from the tensors.

        Pipelines without `cache_context` call for "cond", and then for "uncond" with the same latents and timestep.
        """
        if self._context is not None:
            return self._context
        step = self._convert.of_step(given)
        again = self._unnamed is not None and self._unnamed.same(step)
        self._unnamed = None if again else Snapshot(step)
        return UNCOND if again else COND

    def _own_routes(self, timestep: Tensor) -> Tensor | None:
        """Calibrated routes [L, N] at a timestep, or None; refuses a timestep that belongs to the other expert.

        The values of a schedule are copied from the device once, when its first timestep comes.
        """
        if self.calibration is None and self.denoiser.boundary_ratio is None:
            return None
        schedule = None if timestep.is_inference() else memory_of(timestep)
        if schedule is None:
            (value,) = of_schedule(timestep).flatten()[:1].tolist()
            self._refuse_other(value)
            return None if self.calibration is None else self.calibration.overrides([value])[0]
        known, version = self._looked_up, timestep._version
        if known is None or known[0].data_ptr() != schedule.data_ptr() or known[1] != version:
            routes = None if self.calibration is None else self.calibration.overrides(schedule)  # [P, L, N]
            known = self._looked_up = schedule, version, schedule.tolist(), routes
        step = timestep.storage_offset()
        self._refuse_other(known[2][step])
        return None if known[3] is None else known[3][step]

    def _refuse_other(self, timestep: float) -> None:
        """Raises ValueError for a timestep of the other expert: the pipeline has them swapped, or has only one."""
        ratio, component = self.denoiser.boundary_ratio, self.denoiser.component
        if component not in steps_of_experts([timestep], ratio):
            high, low = timesteps_of_expert(component, ratio)
            raise ValueError(
                f"timestep {timestep:g}: this is {in_words([component])}, which takes {high:g} to {low:g} with the "
                f"boundary_ratio {ratio:g} that it was made with; give the pipeline both experts, each in its place "
                f"(pipe.transformer, pipe.transformer_2), and that boundary_ratio"
            )

    @contextmanager
    def cache_context(self, name: str, **known: Any) -> Iterator[None]:
        """Names the context of the calls inside the block, "cond" or "uncond"; guiders prefix it with "pred_"."""
        before, self._context = self._context, name.removeprefix(PREDICTION)
        try:
            yield
        finally:
            self._context = before

    def _reset_stateful_cache(self, recurse: bool = True) -> None:
        """Drops all state of the request. Pipelines of diffusers call this at their end."""
        for request in (self._request, self._own):
            if request is not None:
                request.reset()
        self._convert.finish()
        self._convert.forget()
        self._looked_up = self._unnamed = None

    @property
    def dtype(self) -> torch.dtype:
        return self.denoiser.dtype

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    def to(self, *arguments: Any, **options: Any) -> VortaTransformer:  # type: ignore[override]
        """Moves a routed model to a device. An engine stays on its device; neither changes its precision."""
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*arguments, **options)
        if dtype is not None and dtype != self.dtype:
            logger.warning("to(%s): this transformer stays in %s; %s", dtype, self.dtype, _PRECISION)
        if device is not None:
            nn.Module.to(self, device, non_blocking=non_blocking)
        return self

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Frees the engine, if `from_pretrained` opened it. May be called twice."""
        if self._engine is not None:
            self._engine.close()

    def __enter__(self) -> VortaTransformer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
