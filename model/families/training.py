# SPDX-License-Identifier: Apache-2.0
"""`TrainingFamily`: the part of a family that turns captions and stored samples into the transformer's inputs.

Router training, calibration and the preparation of their data use it.

Letters: B batch, C latent channels, F, H, W latent frames, height, width, X text tokens.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vorta_trt.model.errors import CheckpointError
from vorta_trt.model.families import ModelFamily, get_family


@dataclass(frozen=True)
class TokenCount:
    """The tokens that a text encoder makes of a text.

    Marks that the tokenizer or a template puts after the text count, since they take rows as well.

    Attributes:
        tokens: number of tokens of the text.
        taken: number of tokens that the pipeline keeps; it cuts off the rest.
        part: part of the text that this encoder reads, such as "quoted text"; empty for the whole text.
    """

    tokens: int
    taken: int
    part: str = ""

    def __str__(self) -> str:
        of_part = f" of {self.part}" if self.part else ""
        return f"{self.tokens} tokens{of_part}, and the model takes {self.taken}"


class TrainingFamily(abc.ABC):
    """Turns a family's samples into inputs of its transformer, and captions into tensors of samples.

    Args:
        facts: facts of the family.
        config: config of the diffusers transformer.

    Attributes:
        facts: facts of the family.
        config: config of the diffusers transformer.
        condition_names: names of the tensors of a sample that are made of its text.
        image_names: names of the tensors that are made of the images that the video begins or ends with, see
            `condition`.
        text_sees_image: whether the text encoders' output for a caption depends on the image.
        tokenizers: components of the pipeline that make the model's tokens of a text, each token a row.
    """

    condition_names: tuple[str, ...]
    image_names: tuple[str, ...] = ()
    text_sees_image: bool = False
    tokenizers: tuple[str, ...] = ("tokenizer",)

    def __init__(self, facts: ModelFamily, config: Mapping[str, Any]) -> None:
        self.facts = facts
        self.config = dict(config)

    # -- training ------------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def conditions(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One sample's conditions as the model takes them (padded), without a batch axis.

        Raises:
            ValueError: a tensor breaks a rule, which the message names; the caller names the sample.
        """

    @abc.abstractmethod
    def reference_conditions(self, prompt: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The tensors of `conditions` from one sample of the reference code's layout."""

    @abc.abstractmethod
    def model_inputs(
        self, noisy: Tensor, timesteps: Tensor, conditions: Mapping[str, Tensor], dtype: torch.dtype
    ) -> dict[str, Any]:
        """The routed transformer's arguments: noisy [B, C, F, H, W], timesteps [B], conditions [B, ...] each."""

    def stepped(self, prediction: Tensor) -> Tensor:
        """The part of a prediction [B, C, F, H, W] that the pipeline's scheduler uses: all of it, in most families."""
        return prediction

    # -- text, in generation -------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def token_counts(self, pipeline: Any, text: str) -> list[TokenCount]:
        """How many tokens a text has, and how many of them the pipeline keeps when it encodes the text.

        Args:
            pipeline: diffusers' pipeline, with the components `tokenizers`.
            text: a prompt or a negative prompt.

        Returns:
            One for each text encoder that gives the model rows of this text.
        """

    # -- images, in generation -----------------------------------------------------------------------------------------

    def first_latents(self, noise: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The latents that the pipeline starts from, made of noise [B, C, F, H, W] and conditions [B, ...] each."""
        return noise

    def encode_negative(
        self, pipeline: Any, text: str, device: torch.device, images: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """Encodes a negative prompt, the text that guidance leads away from; see `encode_caption`."""
        return self.encode_caption(pipeline, text, device, images)

    def condition(
        self, pipeline: Any, images: Mapping[str, Any], size: tuple[int, int, int], device: torch.device
    ) -> dict[str, Tensor]:
        """Has VAE and image encoders encode the images of a request, with the calls that the pipeline will make later.

        Their outputs are recorded, and replayed when the pipeline samples without them (`runtime.pipelines.recorded`).
        So this calls the pipeline's own methods, with the arguments of its `__call__`. Training and calibration use the
        results of these methods.

        Args:
            pipeline: diffusers' pipeline, with the conditioners of its `PipelineKind`.
            images: PIL images in RGB, by the pipeline's argument.
            size: frames, height and width of the video in pixels.
            device: device of the conditioners.

        Returns:
            The tensors of `image_names`, without a batch axis. Where images are optional, samples need not have these
            tensors; they are then further tensors that `model_inputs` takes.
        """
        raise NotImplementedError(f"{type(self).__name__}: a family whose pipelines take images says how")

    # -- preparation ---------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def encode_caption(
        self, pipeline: Any, caption: str, device: torch.device, images: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """Encodes a caption with the pipeline's text encoders: the tensors for `conditions`, without a batch axis.

        Args:
            pipeline: diffusers' pipeline, with text encoders and tokenizers.
            caption: the text.
            device: device of the text encoders.
            images: images of the request, for text encoders that see them; None if there are none.
        """


def check_trains(family: TrainingFamily, checkpoint: object) -> None:
    """Refuses a model whose videos begin with an image, where its family names no tensors for the image.

    Args:
        family: training part of the model's family.
        checkpoint: the checkpoint, for the error.

    Raises:
        CheckpointError: the model needs an image, and its family names no tensors for it.
    """
    images = family.facts.pipeline_kinds(family.config)[0].images
    if images and not family.image_names:
        raise CheckpointError(
            f"checkpoint {checkpoint}: its model takes {' and '.join(images)} beside the text, and routers are trained "
            f"and calibrated with samples of text alone so far; use a text-to-video checkpoint"
        )


def training_family(name: str, config: Mapping[str, Any]) -> TrainingFamily:
    """The training part of a family, for a diffusers transformer's config."""
    facts = get_family(name)
    kind: type[TrainingFamily] = getattr(facts.load("training"), facts.training_class)
    return kind(facts, config)
