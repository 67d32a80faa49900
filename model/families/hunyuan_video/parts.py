# SPDX-License-Identifier: Apache-2.0
"""HunyuanVideo's VAE by tiles, and its text encoders, as graphs of fixed shapes.

diffusers cuts a video into overlapping tiles in time, height and width, and blends what it makes of them; those at the
end of an axis are smaller. There is a graph for every shape of a tile, which diffusers' own code is asked for.

Letters: C channels, F, H, W frames, height, width, X text tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from vorta_trt.model.families.parts import TEXT_ENCODER, VAE_DECODER, VAE_ENCODER, PartGraph, RunGraph, VideoParts

TEXT_ENCODER_2 = "text_encoder_2"
SKIPPED = 2  # last layers of the language model that the pipeline leaves out
CLIP_TOKENS = 77
_INPUTS = {VAE_DECODER: "latents", VAE_ENCODER: "frames"}
_RESULTS = {VAE_DECODER: "frames", VAE_ENCODER: "latents"}


class HunyuanVideoParts(VideoParts):
    """VAE by tiles; the language model, unless it sees images, and CLIP's text encoder."""

    @property
    def components(self) -> dict[str, str]:
        """See the base class."""
        sees_images = self.config.get("image_condition_type") is not None
        texts = {TEXT_ENCODER_2: "text_encoder_2"} | ({} if sees_images else {TEXT_ENCODER: "text_encoder"})
        return texts | ({VAE_ENCODER: "vae"} if sees_images else {}) | {VAE_DECODER: "vae"}

    def graphs(self, part: str, component: Any) -> list[PartGraph]:
        """See the base class."""
        if part == TEXT_ENCODER:
            from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

            rows = self.facts.text_tokens + int(str(DEFAULT_PROMPT_TEMPLATE["crop_start"]))
            tokens = torch.ones(1, rows, dtype=torch.int32)  # [1, X]
            inputs = {"input_ids": tokens, "attention_mask": tokens.clone()}
            return [PartGraph(part, _LanguageModel(component), inputs, ("hidden_states",), of_size=False)]
        if part == TEXT_ENCODER_2:
            inputs = {"input_ids": torch.ones(1, CLIP_TOKENS, dtype=torch.int32)}
            return [PartGraph(part, _TextEncoder(component), inputs, ("pooler_output",), of_size=False)]
        return [
            PartGraph(
                _tile_name(part, shape),
                _Tile(part, component),
                {_INPUTS[part]: torch.empty(shape, dtype=component.dtype)},
                (_RESULTS[part],),
            )
            for shape in self._tile_shapes(part, component)
        ]

    def install(self, part: str, component: Any, run: RunGraph) -> None:
        """See the base class."""
        if part == TEXT_ENCODER:

            def language_model(input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SimpleNamespace:
                inputs = {"input_ids": input_ids.to(torch.int32), "attention_mask": attention_mask.to(torch.int32)}
                hidden = run(part, inputs)["hidden_states"]
                return SimpleNamespace(hidden_states=(hidden,) * (SKIPPED + 1))  # the pipeline takes the first of them

            component.forward = language_model
        elif part == TEXT_ENCODER_2:

            def text_encoder(input_ids: Tensor, **_: Any) -> SimpleNamespace:
                return SimpleNamespace(**run(part, {"input_ids": input_ids.to(torch.int32)}))

            component.forward = text_encoder
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
            return {_RESULTS[part]: torch.empty(1, *made, device="meta")}

        self.install(part, empty, note)
        with torch.no_grad():
            if part == VAE_DECODER:
                sizes = (frames - 1) // temporal + 1, height // spatial, width // spatial
                empty.decode(torch.empty(1, vae.config.latent_channels, *sizes, device="meta"))
            else:  # an image
                empty.encode(torch.empty(1, vae.config.in_channels, 1, height, width, device="meta"))
        return list(shapes)


class _LanguageModel(nn.Module):
    """Token ids and mask int32 [1, X] -> hidden states [1, X, width] before the layers that are left out."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        made = self.model(
            input_ids=input_ids.long(),
            attention_mask=attention_mask.long(),
            output_hidden_states=True,
            use_cache=False,
        )
        hidden: Tensor = made.hidden_states[-(SKIPPED + 1)]
        return hidden


class _TextEncoder(nn.Module):
    """Token ids int32 [1, X] -> the text's embedding [1, width]."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        pooled: Tensor = self.encoder(input_ids.long()).pooler_output
        return pooled


class _Tile(nn.Module):
    """One tile of the VAE, with the convolution of 1 x 1 x 1 before or behind it."""

    def __init__(self, part: str, vae: Any) -> None:
        super().__init__()
        if part == VAE_DECODER:
            self.before, self.behind = vae.post_quant_conv, vae.decoder
        else:
            self.before, self.behind = vae.encoder, vae.quant_conv

    def forward(self, tile: Tensor) -> Tensor:
        made: Tensor = self.behind(self.before(tile))
        return made


class _TileCaller(nn.Module):
    """Stands in the place of diffusers' encoder or decoder."""

    def __init__(self, part: str, run: RunGraph) -> None:
        super().__init__()
        self._part, self._run = part, run

    def forward(self, tile: Tensor) -> Tensor:
        name = _tile_name(self._part, tuple(tile.shape))
        return self._run(name, {_INPUTS[self._part]: tile})[_RESULTS[self._part]]


def _put(part: str, vae: Any, caller: nn.Module) -> None:
    if part == VAE_DECODER:
        vae.post_quant_conv, vae.decoder = nn.Identity(), caller
    else:
        vae.encoder, vae.quant_conv = caller, nn.Identity()


def _tile_name(part: str, shape: tuple[int, ...]) -> str:
    return f"{part}_{'x'.join(map(str, shape[2:]))}"
