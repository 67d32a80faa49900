# SPDX-License-Identifier: Apache-2.0
"""`VortaTransformer`: takes the place of `pipe.transformer` in diffusers' WanPipeline and HunyuanVideoPipeline.

    pipe = WanPipeline.from_pretrained(checkpoint, transformer=VortaTransformer.from_bundle("wan.bundle"))
    pipe = WanPipeline.from_pretrained(checkpoint, transformer=VortaTransformer.from_model(routed_transformer))

Without a request, every call of the pipeline is one launch, with the model's own tau and routes: its router's, or the
calibrated ones of its bundle. Within one

    plan = pipe.transformer.plan(timesteps, cache=StepBroadcast(), guards=RouteGuards(dense_first=2))
    with pipe.transformer.request(plan):
        pipe(prompt)

it follows a plan. A request begins when the pipeline calls with the first timestep of the schedule where another is
due, so the pipeline may be called again and again; leaving the `with` block ends the last one.

What belongs to a request lies in this object: one pipeline, one `VortaTransformer`, one thread at a time. Several may
share an `Engine`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
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

from vorta_trt.model.pipeline_folder import LOADING
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime.engine import Engine
from vorta_trt.runtime.fallbacks import Fallbacks
from vorta_trt.runtime.pipelines.denoiser import Denoiser, EngineDenoiser, TorchDenoiser
from vorta_trt.runtime.pipelines.guidance import Given
from vorta_trt.runtime.pipelines.guidance_fit import use_batched_guidance
from vorta_trt.runtime.pipelines.inputs import ModelInputs
from vorta_trt.runtime.pipelines.refusals import Refusals
from vorta_trt.runtime.pipelines.request import OnStep, Request
from vorta_trt.runtime.sampling.params import GuidanceMode
from vorta_trt.runtime.sampling.step_plan import StepPlan, plan_steps
from vorta_trt.runtime.sampling.step_state import COND

if TYPE_CHECKING:
    from vorta_trt.engines.bundle import Bundle
    from vorta_trt.model import RoutedTransformer
    from vorta_trt.model.route_calibration import RouteCalibration
    from vorta_trt.model.timestep_path import TimestepPath

logger = logging.getLogger(__name__)


class VortaTransformer(Refusals, ModelMixin, ConfigMixin):
    """A diffusers model of which the pipelines see config, dtype, device, `cache_context` and `forward`.

    Make it with `from_bundle` or `from_model`, which pick the family's class.

    `to` moves a routed model; an engine stays on its GPU, and either stays in its precision. With
    `pipe.enable_model_cpu_offload()` and `enable_sequential_cpu_offload()` text encoders and VAE leave the GPU between
    uses and an engine stays; a routed model moves with the former and refuses the latter.

    Attributes:
        denoiser: what runs a launch. fallbacks: what ran otherwise than asked for.
    """

    config_name = "config.json"  # type: ignore[assignment]

    def __init__(self, denoiser: Denoiser, fallbacks: Fallbacks | None = None, engine: Engine | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.denoiser = denoiser
        self.fallbacks = fallbacks or Fallbacks()
        self._engine = engine  # to close
        self._convert = ModelInputs(denoiser)
        self._request: Request | None = None
        self._context = COND
        if isinstance(denoiser, TorchDenoiser):
            self.model = denoiser.model  # as a submodule, its parameters move with this module
        else:
            # Offloading asks a module's parameters where the module is. This one has no element.
            with LOADING:
                self.place = nn.Parameter(torch.empty(0, dtype=denoiser.dtype), requires_grad=False)
        self.register_to_config(**denoiser.config)  # type: ignore[no-untyped-call]

    # -- construction --------------------------------------------------------------------------------------------------

    @classmethod
    def from_bundle(
        cls,
        bundle: str | Path | Bundle | Engine,
        *,
        executor: str | None = None,
        device: str | int | None = None,
        verify: bool = True,
        fallbacks: Fallbacks | None = None,
        **options: Any,
    ) -> VortaTransformer:
        """Of a bundle or of an exported ONNX file.

        Args:
            bundle: its path, or an `Engine`, which stays the caller's to close.
            executor, device, verify, options: as for `Engine`, if it is made here; `close` then closes it.
            fallbacks: counts what runs otherwise than asked for, or refuses it (`Fallbacks(strict=True)`); None takes
                those of the engine.
        Raises: what `Engine` raises; VortaError, for a file that `vorta-trt export` did not write.
        """
        if isinstance(bundle, Engine):
            return _class_of(bundle.metadata)(EngineDenoiser(bundle), fallbacks or bundle.fallbacks)
        engine = Engine(bundle, executor=executor, device=device, verify=verify, fallbacks=fallbacks, **options)
        try:
            return _class_of(engine.metadata)(EngineDenoiser(engine), engine.fallbacks, engine)
        except BaseException:
            engine.close()
            raise

    @classmethod
    def from_model(cls, model: RoutedTransformer, *, fallbacks: Fallbacks | None = None) -> VortaTransformer:
        """Of a routed model in torch, which is shared: on a GPU with our kernels, without any TensorRT; or on the CPU.

        Args:
            model: with its geometry, or every latent size goes and there are no routes in plans.
        """
        return _class_of(model)(TorchDenoiser(model), fallbacks)

    # -- requests ------------------------------------------------------------------------------------------------------

    @cached_property
    def timestep_path(self) -> TimestepPath | None:
        """Timestep embedder and routers, from which plans know their routes; None if they are not at hand."""
        return self.denoiser.timestep_path()

    @cached_property
    def calibration(self) -> RouteCalibration | None:
        """Calibrated routes of the bundle, by the timestep; None if it has none."""
        return self.denoiser.calibration()

    def plan(self, timesteps: Iterable[float] | Tensor, **options: Any) -> StepPlan:
        """`plan_steps` with what is known of this model.

        Args:
            timesteps: those that the pipeline will sample with, in order; see `schedule_timesteps`.
            options: cache, guards, tau, ... of `plan_steps`. Unless given, `calibrated` is what the bundle holds (None:
                the router decides), and timesteps are rounded as the family's pipeline does with its own scheduler.
        """
        timesteps = timesteps if isinstance(timesteps, Tensor) else list(timesteps)
        if self.calibration is not None:
            options.setdefault("calibrated", self.calibration.overrides(timesteps))
        options.setdefault("timestep_dtype", self.dtype if self.denoiser.family == "hunyuan_video" else torch.float32)
        return plan_steps(timesteps, path=self.timestep_path, heads=self.denoiser.heads, **options)

    @contextmanager
    def request(
        self,
        plan: StepPlan,
        *,
        guidance: GuidanceMode = GuidanceMode.SEQUENTIAL,
        fallbacks: Fallbacks | None = None,
        locate: bool | None = None,
        on_step: OnStep | None = None,
    ) -> Iterator[Request]:
        """A context in which the pipeline's calls follow a plan, and samples that are not finite stop the run.

        Args:
            plan: of the schedule that the pipeline samples with.
            guidance: whether both samples of classifier-free guidance share a launch; then they are equal but for
                rounding.
            fallbacks: None takes those of this transformer.
            locate: look for the layer in which values stopped being finite, by running the step again on the CPU; None
                does where the model runs there anyway.
            on_step: called with the number of every step as it begins; may raise to stop the run.
        Raises: RuntimeError, within another request; FallbackError, in strict mode.
        """
        if self._request is not None:
            raise RuntimeError("request: another one has not ended; one transformer follows one plan at a time")
        counting = fallbacks or self.fallbacks
        self._request = Request(
            self.denoiser,
            self._convert,
            plan,
            batched=use_batched_guidance(self.denoiser, guidance, counting),
            fallbacks=counting,
            locate=self.denoiser.on_cpu if locate is None else locate,
            on_step=on_step,
        )
        try:
            yield self._request
            self._request.finish()
        finally:
            self._request = None
            self._convert.forget()

    # -- what a pipeline calls -----------------------------------------------------------------------------------------

    def _denoise(
        self, given: Given, attention_kwargs: dict[str, Any] | None, return_dict: bool
    ) -> tuple[Tensor] | Transformer2DModelOutput:
        if attention_kwargs:
            raise VortaError(
                f"attention_kwargs {attention_kwargs}: must be empty; a LoRA scale, or anything else of attention "
                f"processors, has no effect on weights that are built in; fuse the LoRA before building"
            )
        if any(parameter.is_meta for parameter in self.parameters()) and isinstance(self.denoiser, TorchDenoiser):
            raise VortaError(
                "enable_sequential_cpu_offload: takes a routed model's weights away one by one, and it needs them "
                "together; use pipe.enable_model_cpu_offload()"
            )
        latents = given["hidden_states"]
        assert latents is not None
        if self._request is None:
            inputs, routes = self._convert(given, self._context), None
            if self.calibration is not None:
                routes = self.calibration.overrides(inputs["timestep"][:1])[0]  # [L, N]
            sample, _ = self.denoiser.run(inputs, None, routes)  # [B, C, F, H, W]
        else:
            sample = self._request.sample(self._context, given)
        sample = sample.to(latents.device, latents.dtype)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    @contextmanager
    def cache_context(self, name: str, **known: Any) -> Iterator[None]:
        """As the pipelines use it: the calls inside are for "cond" or "uncond"."""
        before, self._context = self._context, name
        try:
            yield
        finally:
            self._context = before

    def _reset_stateful_cache(self, recurse: bool = True) -> None:
        """diffusers' pipelines call this when they are done: nothing of the request is kept."""
        if self._request is not None:
            self._request.reset()
        self._convert.forget()

    @property
    def dtype(self) -> torch.dtype:
        return self.denoiser.dtype

    @property
    def device(self) -> torch.device:
        return self.denoiser.device

    def to(self, *arguments: Any, **options: Any) -> VortaTransformer:  # type: ignore[override]
        """Moves a routed model to a device. An engine stays where it is; the precision of either stays what it is."""
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*arguments, **options)
        if dtype is not None and dtype != self.dtype:
            logger.warning("to(%s): this transformer stays in %s; %s", dtype, self.dtype, _PRECISION)
        if device is not None:
            nn.Module.to(self, device, non_blocking=non_blocking)
        return self

    # -- the end -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Frees the engine, if `from_bundle` made it. May be called twice."""
        if self._engine is not None:
            self._engine.close()

    def __enter__(self) -> VortaTransformer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_PRECISION = "build or load it in another precision if you need that"


class VortaWanTransformer(VortaTransformer):
    """In the place of WanTransformer3DModel."""

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor] | Transformer2DModelOutput:
        """hidden_states [B, C, F, H, W], timestep [B], encoder_hidden_states [B, 512, text_dim] -> the sample, as
        hidden_states."""
        if encoder_hidden_states_image is not None:
            raise VortaError("encoder_hidden_states_image: only text-to-video models are routed; leave it out")
        given = {
            "hidden_states": hidden_states,
            "timestep": timestep,
            "encoder_hidden_states": encoder_hidden_states,
        }
        return self._denoise(given, attention_kwargs, return_dict)


class VortaHunyuanVideoTransformer(VortaTransformer):
    """In the place of HunyuanVideoTransformer3DModel."""

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        pooled_projections: Tensor,
        guidance: Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> tuple[Tensor] | Transformer2DModelOutput:
        """hidden_states [B, C, F, H, W], timestep [B], encoder_hidden_states [B, up to T, text_dim] and its mask, valid
        rows first, pooled_projections [B, pooled_dim], guidance [B] -> the sample, as hidden_states."""
        given = {
            "hidden_states": hidden_states,
            "timestep": timestep,
            "encoder_hidden_states": encoder_hidden_states,
            "encoder_attention_mask": encoder_attention_mask,
            "pooled_projections": pooled_projections,
            "guidance": guidance,
        }
        return self._denoise(given, attention_kwargs, return_dict)


def _class_of(model: Any) -> type[VortaTransformer]:
    """By the `family` of metadata or of a model; any, for a file without metadata, which `EngineDenoiser` refuses."""
    return VortaHunyuanVideoTransformer if getattr(model, "family", "wan") == "hunyuan_video" else VortaWanTransformer
