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

    Marks that the tokenizer or a template puts behind the text count, since they take rows as well.

    Attributes:
        tokens: as many as the text has.
        taken: as many as the pipeline keeps; what is behind them is cut off.
        part: of the text, that this encoder reads, such as "quoted text"; the whole text without one.
    """

    tokens: int
    taken: int
    part: str = ""

    def __str__(self) -> str:
        of_part = f" of {self.part}" if self.part else ""
        return f"{self.tokens} tokens{of_part}, and the model takes {self.taken}"


class TrainingFamily(abc.ABC):
    """How a family's samples become its inputs, and how captions become samples.

    Args:
        facts: of the family.
        config: of the diffusers transformer.

    Attributes:
        facts: of the family.
        config: of the diffusers transformer.
        condition_names: tensors of a sample beside its latents, made of its text.
        image_names: further ones, made of the images that the video begins or ends with, see `condition`.
        text_sees_image: whether what the text encoders give of a caption depends on the image.
        tokenizers: components of the pipeline whose tokens of a text the model takes, each as a row.
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
            pipeline: diffusers', with the components `tokenizers`.
            text: a prompt or a negative prompt.

        Returns:
            One for each text encoder that gives the model rows of this text.
        """

    # -- images, in generation -----------------------------------------------------------------------------------------

    def first_latents(self, noise: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """What the pipeline starts from: noise [B, C, F, H, W], conditions [B, ...] each."""
        return noise

    def encode_negative(
        self, pipeline: Any, text: str, device: torch.device, images: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """As `encode_caption`, of what guidance leads away from."""
        return self.encode_caption(pipeline, text, device, images)

    def condition(
        self, pipeline: Any, images: Mapping[str, Any], size: tuple[int, int, int], device: torch.device
    ) -> dict[str, Tensor]:
        """Has VAE and image encoders encode the images of a request, with the calls that the pipeline will make later.

        What they give is kept, and given again when the pipeline samples without them (`runtime.pipelines.recorded`).
        So this calls the pipeline's own methods, with the arguments of its `__call__`. Training and calibration take
        what those make of it.

        Args:
            pipeline: diffusers', with the conditioners of its `PipelineKind`.
            images: in RGB, of PIL, by the pipeline's argument.
            size: frames, height and width of the video in pixels.
            device: where the conditioners are.

        Returns:
            The tensors of `image_names`, without a batch axis. Where a model may do without images, so may samples, and
            then these are the tensors that `model_inputs` takes beside theirs.
        """
        raise NotImplementedError(f"{type(self).__name__}: a family whose pipelines take images says how")

    # -- preparation ---------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def encode_caption(
        self, pipeline: Any, caption: str, device: torch.device, images: Mapping[str, Any] | None = None
    ) -> dict[str, Tensor]:
        """The tensors of `conditions` of a caption, by the pipeline's text encoders; without a batch axis.

        Args:
            pipeline: diffusers', with text encoders and tokenizers.
            caption: the text.
            device: where they are.
            images: those of the request, for text encoders that see them; None if there are none.
        """


def check_trains(family: TrainingFamily, checkpoint: object) -> None:
    """Refuses a model whose videos begin with an image, where its family does not say what samples have of that.

    Args:
        family: of the model.
        checkpoint: for the error.

    Raises:
        CheckpointError: it is one.
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
