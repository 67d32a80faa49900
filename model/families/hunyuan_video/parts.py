# SPDX-License-Identifier: Apache-2.0
"""HunyuanVideo's VAE by tiles, and its text encoders, as graphs of fixed shapes.

diffusers cuts a video into overlapping tiles in time, height and width, and blends the results; tiles at the end of an
axis are smaller. There is a graph for every shape of a tile. Running diffusers' own code without data tells these
shapes.

Letters: C channels, F, H, W frames, height, width.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vorta_trt.model.families.encoders import EncoderPart, hidden_states, pooler_output, token_inputs
from vorta_trt.model.families.parts import (
    TEXT_ENCODER,
    TEXT_ENCODER_2,
    VAE_DECODER,
    VAE_ENCODER,
    VAE_INPUTS,
    VAE_RESULTS,
    PartGraph,
    RunGraph,
    VideoParts,
)

SKIPPED = 2  # last layers of the language model that the pipeline leaves out
CLIP_TOKENS = 77


class TiledParts(VideoParts):
    """A VAE that runs tile by tile, and the encoders that a family names.

    A VAE may have convolutions of 1 x 1 x 1 before its decoder and after its encoder, `post_quant_conv` and
    `quant_conv`.
    """

    @abc.abstractmethod
    def encoder(self, part: str, component: Any) -> EncoderPart | None:
        """The encoder of a part; None for the VAE's."""

    def graphs(self, part: str, component: Any) -> list[PartGraph]:
        """See the base class."""
        if (encoder := self.encoder(part, component)) is not None:
            return [encoder.graph(component)]
        return [
            PartGraph(
                _tile_name(part, shape),
                _Tile(part, component),
                {VAE_INPUTS[part]: torch.empty(shape, dtype=component.dtype)},
                (VAE_RESULTS[part],),
            )
            for shape in self._tile_shapes(part, component)
        ]

    def install(self, part: str, component: Any, run: RunGraph) -> None:
        """See the base class."""
        if (encoder := self.encoder(part, component)) is not None:
            encoder.install(component, run)
        else:
            component.enable_tiling()
            _put(part, component, _TileCaller(part, run))

    def _tile_shapes(self, part: str, vae: Any) -> list[tuple[int, ...]]:
        """The shapes [1, C, F, H, W] of the tiles that diffusers cuts, each once; nothing is computed."""
        frames, height, width = self.size
        temporal, spatial = self.facts.compression(self.config)
        empty = copy.deepcopy(vae).to("meta")
        shapes: dict[tuple[int, ...], None] = {}

        def note(name: str, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            (tile,) = inputs.values()
            shapes[tuple(tile.shape)] = None
            _, _, length, rows, columns = tile.shape
            if part == VAE_DECODER:
                made = (3, (length - 1) * temporal + 1, rows * spatial, columns * spatial)
            else:
                made = (
                    2 * vae.config.latent_channels,
                    (length - 1) // temporal + 1,
                    rows // spatial,
                    columns // spatial,
                )
            return {VAE_RESULTS[part]: torch.empty(1, *made, device="meta")}

        self.install(part, empty, note)
        with torch.no_grad():
            if part == VAE_DECODER:
                sizes = (frames - 1) // temporal + 1, height // spatial, width // spatial
                empty.decode(torch.empty(1, vae.config.latent_channels, *sizes, device="meta"))
            else:  # an image
                empty.encode(torch.empty(1, vae.config.in_channels, 1, height, width, device="meta"))
        return list(shapes)


class HunyuanVideoParts(TiledParts):
    """VAE by tiles; the language model, unless it sees images, and CLIP's text encoder."""

    @property
    def components(self) -> dict[str, str]:
        """See the base class."""
        sees_images = self.config.get("image_condition_type") is not None
        texts = {TEXT_ENCODER_2: "text_encoder_2"} | ({} if sees_images else {TEXT_ENCODER: "text_encoder"})
        return texts | ({VAE_ENCODER: "vae"} if sees_images else {}) | {VAE_DECODER: "vae"}

    def encoder(self, part: str, component: Any) -> EncoderPart | None:
        """See the base class."""
        if part == TEXT_ENCODER:
            from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

            rows = self.facts.text_tokens + int(str(DEFAULT_PROMPT_TEMPLATE["crop_start"]))
            return hidden_states(part, token_inputs(rows), SKIPPED, use_cache=False)
        return pooler_output(part, token_inputs(CLIP_TOKENS, masked=False)) if part == TEXT_ENCODER_2 else None


class _Tile(nn.Module):
    """One tile of the VAE, with the convolution of 1 x 1 x 1 before or after it, if there is one."""

    def __init__(self, part: str, vae: Any) -> None:
        super().__init__()
        if part == VAE_DECODER:
            self.before, self.behind = getattr(vae, "post_quant_conv", nn.Identity()), vae.decoder
        else:
            self.before, self.behind = vae.encoder, getattr(vae, "quant_conv", nn.Identity())

    def forward(self, tile: Tensor) -> Tensor:
        made: Tensor = self.behind(self.before(tile))
        return made


class _TileCaller(nn.Module):
    """Replaces diffusers' encoder or decoder, and runs the graph of each tile."""

    def __init__(self, part: str, run: RunGraph) -> None:
        super().__init__()
        self._part, self._run = part, run

    def forward(self, tile: Tensor) -> Tensor:
        name = _tile_name(self._part, tuple(tile.shape))
        return self._run(name, {VAE_INPUTS[self._part]: tile})[VAE_RESULTS[self._part]]


def _put(part: str, vae: Any, caller: nn.Module) -> None:
    if part == VAE_DECODER:
        vae.post_quant_conv, vae.decoder = nn.Identity(), caller
    else:
        vae.encoder, vae.quant_conv = caller, nn.Identity()


def _tile_name(part: str, shape: tuple[int, ...]) -> str:
    return f"{part}_{'x'.join(map(str, shape[2:]))}"
