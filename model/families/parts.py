# SPDX-License-Identifier: Apache-2.0
"""`VideoParts`: the parts of a pipeline, beside its transformer, that become graphs of fixed shapes and run as such.

A part ("vae_decoder", "vae_encoder", "text_encoder", ...) is one or several graphs. The classes of diffusers and
transformers still run around the graphs: `VideoParts.install` puts callers of the graphs into a component without
weights, so that tiling, blending, chunks and clamping are the library's.

Letters: B batch (always 1), C channels, F, H, W frames, height, width, X text tokens.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

if TYPE_CHECKING:
    from vorta_trt.model.families.family import ModelFamily

TEXT_ENCODER, TEXT_ENCODER_2, IMAGE_ENCODER = "text_encoder", "text_encoder_2", "image_encoder"
VAE_ENCODER, VAE_DECODER = "vae_encoder", "vae_decoder"
VAE_INPUTS = {VAE_DECODER: "latents", VAE_ENCODER: "frames"}
VAE_RESULTS = {VAE_DECODER: "frames", VAE_ENCODER: "latents"}


@dataclass(frozen=True, eq=False)
class PartGraph:
    """One graph of a part.

    Attributes:
        name: Name of the graph, which begins with the part's, such as "vae_decoder_first".
        module: Computes it; its `forward` takes the inputs in order and returns the outputs in order.
        inputs: Example inputs, by name; every shape is fixed. Floating-point ones are in the graph's precision.
        outputs: Names of the outputs.
        of_size: Whether its shapes depend on the size of the videos.
        runs_once: Whether it runs once in a video, beside graphs that run many times.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    outputs: tuple[str, ...]
    of_size: bool = True
    runs_once: bool = False


class RunGraph(Protocol):
    """Runs graphs by name; tensors of other types and places are converted."""

    def __call__(self, name: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs; an input that is left out is zero."""
        ...


class VideoParts(abc.ABC):
    """The parts of one model.

    Args:
        facts: Facts of the family.
        config: Config of the transformer.
        size: Frames, height and width of the videos in pixels.
    """

    def __init__(self, facts: ModelFamily, config: Mapping[str, Any], size: tuple[int, int, int]) -> None:
        self.facts, self.config, self.size = facts, config, size

    @property
    @abc.abstractmethod
    def components(self) -> dict[str, str]:
        """The component of the pipeline that every part is made of, by part; in the order in which they run."""

    @abc.abstractmethod
    def graphs(self, part: str, component: Any) -> list[PartGraph]:
        """The graphs of a part.

        Args:
            part: A key of `components`.
            component: Component of the pipeline, with weights or with placeholders for them.
        """

    @abc.abstractmethod
    def install(self, part: str, component: Any, run: RunGraph) -> None:
        """Puts callers of a part's graphs into a component, in the places of the modules that they compute."""


def replace_modules(root: nn.Module, kind: type[Any], replacement: Callable[[Any], nn.Module]) -> None:
    """Puts what `replacement` makes of each module of a kind into its place, below `root`."""
    for module in list(root.modules()):
        for name, child in module.named_children():
            if isinstance(child, kind):
                setattr(module, name, replacement(child))


def video_parts(facts: ModelFamily, config: Mapping[str, Any], size: tuple[int, int, int]) -> VideoParts | None:
    """The parts of a model that can be exported; None if its family has none."""
    if facts.parts_class is None:
        return None
    made: VideoParts = getattr(facts.load("parts"), facts.parts_class)(facts, config, size)
    return made
