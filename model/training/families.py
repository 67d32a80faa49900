# SPDX-License-Identifier: Apache-2.0
"""What router training has to know about a model family, behind one small interface.

Letters: B batch, C latent channels, F, H, W latent frames, height, width, X text tokens.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vorta_trt.model.geometry import AttentionGeometry


class TrainingFamily(abc.ABC):
    """How a family's samples become its inputs, and how videos and captions become samples.

    Args:
        config: of the diffusers transformer.

    Attributes:
        name: as in `RoutedTransformer.family`. pipeline: diffusers' class that loads text encoder and VAE.
        blocks: names of the routed block classes, the units that FSDP shards. frames_per_second: of its videos.
        tiled_vae: its VAE encodes large videos only in tiles. condition_names: tensors of a sample beside its latents.
        guidance_scale: its pipeline's default. classifier_free_guidance: it comes from a second pass, of an empty
            prompt; otherwise it is embedded, or there is none.
    """

    name: str
    pipeline: str
    blocks: tuple[str, ...]
    frames_per_second: float
    tiled_vae: bool = False
    condition_names: tuple[str, ...]
    guidance_scale: float
    classifier_free_guidance: bool = False

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = dict(config)

    @abc.abstractmethod
    def latent_shape(self, geometry: AttentionGeometry) -> tuple[int, int, int, int]:
        """C, F, H, W of the latents that give the geometry's token grid."""

    # -- training ------------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def conditions(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One sample's conditions as the model takes them (padded), without a batch axis.

        Raises ValueError saying which tensor breaks which rule; the caller names the sample.
        """

    @abc.abstractmethod
    def reference_conditions(self, prompt: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The tensors of `conditions` from one sample of the reference code's layout."""

    @abc.abstractmethod
    def model_inputs(
        self, noisy: Tensor, timesteps: Tensor, conditions: Mapping[str, Tensor], dtype: torch.dtype
    ) -> dict[str, Any]:
        """The routed transformer's arguments: noisy [B, C, F, H, W], timesteps [B], conditions [B, ...] each."""

    # -- preparation ---------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def encode_caption(self, pipeline: Any, caption: str, device: torch.device) -> dict[str, Tensor]:
        """The tensors of `conditions` of a caption, by the pipeline's text encoders; without a batch axis."""

    @abc.abstractmethod
    def normalise(self, vae: Any, latents: Tensor) -> Tensor:
        """What the VAE's encoder gives -> what the transformer denoises; [1, C, F, H, W] both."""


def training_family(name: str, config: Mapping[str, Any]) -> TrainingFamily:
    """The family of a diffusers transformer's config."""
    if name == "wan":
        from vorta_trt.model.training.wan import WanTraining

        return WanTraining(config)
    if name == "hunyuan_video":
        from vorta_trt.model.training.hunyuan_video import HunyuanVideoTraining

        return HunyuanVideoTraining(config)
    raise ValueError(f"family {name!r}: its routers cannot be trained; use a Wan 2.1 or HunyuanVideo checkpoint")
