# SPDX-License-Identifier: Apache-2.0
"""`Denoiser`: launches a transformer, which is either an engine or a routed model in torch.

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
    """The interface through which pipelines use a transformer.

    Args:
        described: Metadata or a model, which has the family, config, and numbers of layers and heads.
        latent_shape: See the attribute.
        text_tokens: See the attribute.

    Attributes:
        family: Name of the model family.
        component: "transformer", or "transformer_2" for the second of two experts.
        boundary_ratio: The second of two experts runs at timesteps below 1000 times this ratio; None for a model with
            one transformer.
        config: Config of the diffusers transformer.
        latent_shape: Shape (C, F, H, W) of the latents; None if any shape is accepted.
        text_tokens: Number of rows of `encoder_hidden_states`; None if any number is accepted.
        heads: Number of layers and heads (L, N).
        dtype: Type of the activations.
        device: The device of the inputs; inputs on another device are copied there.
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
        """Number of channels of the sample. The input latents may have further channels, of a condition."""
        return get_family(self.family).latent_channels(self.config)

    @abc.abstractmethod
    def run(
        self, inputs: Mapping[str, Tensor], tau: float | None, route_override: Tensor | None, step: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Launches the transformer once.

        Args:
            inputs: Input tensors by name, in the model's types.
            tau: Routing threshold; None takes the model's own.
            route_override: Routes that replace the router's, int32 [L, N]; None takes the model's own.
            step: Number of the step, for profilers.

        Returns:
            The sample [B, C, F, H, W], and the routes that were taken, int32 [L, B, N].
        """

    @abc.abstractmethod
    def timestep_path(self) -> TimestepPath | None:
        """The timestep path of the model; None if it is not available."""

    def calibration(self) -> RouteCalibration | None:
        """Calibrated routes that come with the model; None if there are none."""
        return None

    @abc.abstractmethod
    def locate(self, inputs: Mapping[str, Any]) -> str:
        """Runs these inputs again, and says in words where values become non-finite."""


class EngineDenoiser(Denoiser):
    """A bundle or an exported ONNX file that runs in an `Engine`. The caller closes the engine."""

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
        # A torch without CUDA cannot have tensors on the engine's GPU, so they are copied from and to host memory.
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
    """A routed model in torch. It runs on a GPU with the plugin's kernels, on the CPU with the reference."""

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
    """Whether both samples of guidance share a launch, which depends on the optimization profile and the memory.

    AUTO batches only engines on a GPU. On the CPU nothing is gained, and for torch it is not known whether the batch
    fits into the memory.

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
