# SPDX-License-Identifier: Apache-2.0
"""`Denoiser`: one launch of a transformer, whatever runs it: an engine, or a routed model in torch.

Letters: B batch, C latent channels, F, H, W latent frames, height, width, L layers, N heads.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vorta_trt.model.constants import TRANSFORMER
from vorta_trt.model.families import get_family
from vorta_trt.model.precision import torch_dtype
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime.engine import Engine
from vorta_trt.runtime.fallbacks import Fallbacks
from vorta_trt.runtime.memory_plan import batched_guidance_fits
from vorta_trt.runtime.sampling.locate_non_finite import locate_in_onnx, locate_in_torch
from vorta_trt.runtime.sampling.params import GuidanceMode
from vorta_trt.runtime.sampling.path_source import timestep_path_of

if TYPE_CHECKING:
    from vorta_trt.model import RoutedTransformer
    from vorta_trt.model.route_calibration import RouteCalibration
    from vorta_trt.model.timestep_path import TimestepPath


BATCHED_GUIDANCE = "batched guidance"  # the kind of fallback


class Denoiser(abc.ABC):
    """What the pipelines know of a transformer.

    Args:
        described: Metadata or a model: its family, config, and numbers of layers and heads.
        latent_shape: See below.
        text_tokens: See below.

    Attributes:
        family: Name of the model family.
        component: "transformer", or "transformer_2" for the second of two experts.
        boundary_ratio: Where that takes over; None for a model alone.
        config: Of the diffusers transformer.
        latent_shape: (C, F, H, W); None if any will do.
        text_tokens: Rows of `encoder_hidden_states`; None if any number will do.
        heads: (L, N).
        dtype: Of activations.
        device: Where inputs are expected; others are copied there.
        on_cpu: Whether launches run on the CPU.
    """

    dtype: torch.dtype
    device: torch.device
    on_cpu: bool
    component: str = TRANSFORMER
    boundary_ratio: float | None = None

    def __init__(self, described: Any, latent_shape: tuple[int, int, int, int] | None, text_tokens: int | None) -> None:
        self.family: str = described.family
        self.component, self.boundary_ratio = described.component, described.boundary_ratio
        self.config: Mapping[str, Any] = described.config
        self.heads: tuple[int, int] = described.num_layers, described.num_heads
        self.latent_shape, self.text_tokens = latent_shape, text_tokens

    @property
    def sample_channels(self) -> int:
        """Channels of the sample; the latents that are given may come with those of a condition."""
        return get_family(self.family).latent_channels(self.config)

    @abc.abstractmethod
    def run(
        self, inputs: Mapping[str, Tensor], tau: float | None, route_override: Tensor | None, step: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """One launch.

        Args:
            inputs: By name, in the model's types.
            tau: Routing threshold; None is the model's own.
            route_override: int32 [L, N]; None is the model's own.
            step: Its number, for profilers.

        Returns:
            The sample [B, C, F, H, W], and the routes taken, int32 [L, B, N].
        """

    @abc.abstractmethod
    def timestep_path(self) -> TimestepPath | None:
        """The timestep path of the model, None if it is not at hand."""

    def calibration(self) -> RouteCalibration | None:
        """Calibrated routes that come with the model; None if there are none."""
        return None

    @abc.abstractmethod
    def locate(self, inputs: Mapping[str, Any]) -> str:
        """Where values that are not finite begin when these inputs are run again, in words."""


class EngineDenoiser(Denoiser):
    """A bundle or an exported ONNX file in an `Engine`, which stays the caller's to close."""

    def __init__(self, engine: Engine) -> None:
        metadata = engine.metadata
        if metadata is None:
            raise VortaError(
                f"{engine.path}: says nothing about its model, since `vorta-trt export` did not write it; export the "
                f"checkpoint, and build from that file"
            )
        if engine.reuses_outputs:
            raise ValueError(
                "outputs 'reuse': pipelines keep the sample of one call over the next, which would overwrite it; leave "
                "it out"
            )
        super().__init__(metadata, metadata.latent_shape, metadata.text_length)
        self.engine = engine
        self.dtype = torch_dtype(metadata.precision)
        self.on_cpu = engine.device == "cpu"
        # A torch without CUDA has no tensors on the engine's GPU: they come and go through host memory.
        self.device = torch.device(engine.device if torch.cuda.is_available() else "cpu")

    def run(
        self, inputs: Mapping[str, Tensor], tau: float | None, route_override: Tensor | None, step: int | None = None
    ) -> tuple[Tensor, Tensor]:
        outputs: Mapping[str, Any] = self.engine(**inputs, tau=tau, route_override=route_override, step=step)
        return outputs["sample"], outputs["routes"]

    def timestep_path(self) -> TimestepPath | None:
        return timestep_path_of(self.engine.target)

    def calibration(self) -> RouteCalibration | None:
        bundle = self.engine.target.bundle
        return None if bundle is None else bundle.route_override()

    def locate(self, inputs: Mapping[str, Any]) -> str:
        return locate_in_onnx(self.engine.target, inputs)


class TorchDenoiser(Denoiser):
    """A routed model in torch: on a GPU with the kernels of the plugin, on the CPU with the reference."""

    def __init__(self, model: RoutedTransformer) -> None:
        if not model.materialized:
            raise ValueError("model with materialize=False: its weights are on disk, for export; load it with True")
        geometry = model.geometry
        shape = None if geometry is None else model.facts().latent_shape(model.config, geometry.grid)
        joint = geometry is not None and geometry.text_tokens
        super().__init__(model, shape, model.facts().text_rows(joint) if joint else None)
        self.model = model

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.model.dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.model.proj_out.weight.device  # type: ignore[no-any-return]

    @property
    def on_cpu(self) -> bool:  # type: ignore[override]
        return self.device.type == "cpu"

    def run(
        self, inputs: Mapping[str, Tensor], tau: float | None, route_override: Tensor | None, step: int | None = None
    ) -> tuple[Tensor, Tensor]:
        override = None if route_override is None else route_override.to(self.device, non_blocking=True)
        with torch.no_grad():
            return self.model(**inputs, tau=tau, route_override=override)  # type: ignore[no-any-return]

    def timestep_path(self) -> TimestepPath | None:
        from vorta_trt.model.timestep_path import TimestepPath

        return TimestepPath.from_model(self.model)

    def locate(self, inputs: Mapping[str, Any]) -> str:
        return locate_in_torch(self.model, inputs)


def use_batched_guidance(denoiser: Denoiser, mode: GuidanceMode, fallbacks: Fallbacks) -> bool:
    """Whether both samples of guidance go through one launch: the optimization profile and the memory decide.

    AUTO batches only engines on a GPU: on the CPU nothing is gained, and of torch it is not known what fits.

    Raises:
        FallbackError: In strict mode, if `mode` is BATCHED and it is not possible.
    """
    is_engine = isinstance(denoiser, EngineDenoiser)
    if mode is GuidanceMode.SEQUENTIAL or (mode is GuidanceMode.AUTO and (denoiser.on_cpu or not is_engine)):
        return False
    fit = batched_guidance_fits(denoiser.engine) if isinstance(denoiser, EngineDenoiser) else None
    if fit is None or fit:
        return True
    if mode is GuidanceMode.BATCHED:
        fallbacks.record(BATCHED_GUIDANCE, fit.reason)
    return False
