# SPDX-License-Identifier: Apache-2.0
"""Wan's VAE, text encoder and image encoder as graphs of fixed shapes.

The VAE is causal in time and works on chunks: the first frame alone, then one latent frame or four video frames at a
time. Each of its convolutions over time keeps the last frames that it saw, the caches. Here the caches are inputs and
outputs, so two graphs are enough: one for the first chunk, and one for all others. diffusers' first caches are shorter
than the later ones, or missing; filling them up with zeros at the front changes nothing, since the convolutions pad
with zeros.

Letters: C channels, F, H, W frames, height, width.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vorta_trt.model.families.encoders import (
    EncoderPart,
    encodes_images,
    hidden_states,
    image_inputs,
    last_hidden_state,
    token_inputs,
)
from vorta_trt.model.families.parts import (
    IMAGE_ENCODER,
    TEXT_ENCODER,
    VAE_DECODER,
    VAE_ENCODER,
    VAE_INPUTS,
    VAE_RESULTS,
    PartGraph,
    RunGraph,
    VideoParts,
    replace_modules,
)
from vorta_trt.model.families.wan import TEXT_SEQUENCE

SKIPPED = 1  # last layers of the image encoder that the pipeline leaves out
CHUNK = 4  # video frames of every chunk but the first, as diffusers takes them


class WanParts(VideoParts):
    """VAE decoder and encoder chunk by chunk, the text encoder, and CLIP's image encoder where a model has one."""

    @property
    def components(self) -> dict[str, str]:
        """See the base class."""
        kinds = self.facts.pipeline_kinds(self.config)
        encodes = any("vae" in kind.conditioners for kind in kinds)
        return {
            TEXT_ENCODER: "text_encoder",
            **({IMAGE_ENCODER: "image_encoder"} if encodes_images(kinds) else {}),
            **({VAE_ENCODER: "vae"} if encodes else {}),
            VAE_DECODER: "vae",
        }

    def graphs(self, part: str, component: Any) -> list[PartGraph]:
        """See the base class; the upsampling of a VAE is replaced in it."""
        if (encoder := _encoder(part, component)) is not None:
            return [encoder.graph(component)]
        _upsample_in_own_dtype(component)
        first, then = self._chunks(part, component.config)
        full = _caches_after(part, component, [first, then, then])
        caches = {f"cache_{index}": shape for index, shape in full.items()}
        filled = {f"cache_{index}": full[index] for index in _caches_after(part, component, [first])}
        name, result, dtype = VAE_INPUTS[part], VAE_RESULTS[part], component.dtype
        given = {name: torch.empty(shape, dtype=dtype) for name, shape in caches.items()}
        return [
            PartGraph(
                f"{part}_first",
                _Chunk(part, component, filled, is_first=True),
                {name: torch.empty(1, *first, dtype=dtype)},
                (result, *_outputs(filled)),
                runs_once=True,
            ),
            PartGraph(
                f"{part}_next",
                _Chunk(part, component, caches, is_first=False),
                {name: torch.empty(1, *then, dtype=dtype), **given},
                (result, *_outputs(caches)),
            ),
        ]

    def _chunks(self, part: str, vae_config: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes [C, F, H, W] of what the first chunk and each other one take."""
        _, height, width = self.size
        if part == VAE_DECODER:
            pixels = self.facts.compression(self.config)[1]
            chunk = (vae_config.z_dim, 1, height // pixels, width // pixels)
            return chunk, chunk
        patch = vae_config.patch_size or 1
        sizes = height // patch, width // patch
        return (vae_config.in_channels, 1, *sizes), (vae_config.in_channels, CHUNK, *sizes)

    def install(self, part: str, component: Any, run: RunGraph) -> None:
        """See the base class."""
        if (encoder := _encoder(part, component)) is not None:
            encoder.install(component, run)
        elif part == VAE_DECODER:
            component.post_quant_conv, component.decoder = nn.Identity(), _ChunkCaller(part, run)
        else:
            component.encoder, component.quant_conv = _ChunkCaller(part, run), nn.Identity()


def _encoder(part: str, component: Any) -> EncoderPart | None:
    """The encoder of a part; None for the VAE's."""
    if part == TEXT_ENCODER:
        return last_hidden_state(part, token_inputs(TEXT_SEQUENCE))
    return hidden_states(part, image_inputs(component), SKIPPED) if part == IMAGE_ENCODER else None


class _Chunk(nn.Module):
    """One chunk of the VAE with the convolutions of 1 x 1 x 1 around it, and with its caches.

    Args:
        part: VAE_DECODER or VAE_ENCODER.
        vae: VAE of diffusers.
        caches: Shapes of the caches by name, in order. They are outputs of every chunk, and inputs of all chunks but
            the first.
        is_first: Whether it is the first chunk, before which nothing is cached.
    """

    def __init__(self, part: str, vae: Any, caches: Mapping[str, Sequence[int]], *, is_first: bool) -> None:
        super().__init__()
        self.is_first, self.decodes = is_first, part == VAE_DECODER
        self.caches = {int(name.rpartition("_")[2]): tuple(shape) for name, shape in caches.items()}
        if self.decodes:
            self.post_quant_conv, self.decoder = vae.post_quant_conv, vae.decoder
        else:
            self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

    def forward(self, chunk: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        kept: defaultdict[int, Any] = defaultdict(lambda: None)
        if not self.is_first:
            kept.update(zip(self.caches, caches, strict=True))
        if self.decodes:
            made = self.decoder(
                self.post_quant_conv(chunk), feat_cache=kept, feat_idx=[0], first_chunk=self.is_first
            )  # [1, 3, 1 or 4, H, W]
        else:
            made = self.quant_conv(self.encoder(chunk, feat_cache=kept, feat_idx=[0]))  # [1, 2C, 1, H, W]
        return made, *(_padded(kept[index], shape[2]) for index, shape in self.caches.items())


class _ChunkCaller(nn.Module):
    """Replaces diffusers' encoder or decoder, and keeps the caches in `feat_cache` as those do."""

    def __init__(self, part: str, run: RunGraph) -> None:
        super().__init__()
        self._part, self._run = part, run

    def forward(self, chunk: Tensor, feat_cache: list[Any], feat_idx: list[int], first_chunk: bool = False) -> Tensor:
        is_first = first_chunk or feat_cache[0] is None
        kept = {} if is_first else feat_cache[0]
        made = self._run(f"{self._part}_{'first' if is_first else 'next'}", {VAE_INPUTS[self._part]: chunk, **kept})
        result = made.pop(VAE_RESULTS[self._part])
        feat_cache[0] = {name.removeprefix("new_"): tensor for name, tensor in made.items()}
        return result


def _upsample_in_own_dtype(vae: nn.Module) -> None:
    """Replaces diffusers' upsampling, which copies pixels in float32, by one that copies them as they are.

    With whole factors, "nearest" and "nearest-exact" take the same pixels. The first is one ONNX operator, Resize; the
    second becomes a GatherND between two transposes and two casts.
    """

    def nearest(module: nn.Upsample) -> nn.Upsample:
        factors = module.scale_factor
        if module.mode != "nearest-exact":
            return module
        if not isinstance(factors, tuple) or any(each % 1 for each in factors):
            raise ValueError(f"VAE: upsampling by {factors}; only whole factors are known, as Wan's VAEs have")
        return nn.Upsample(scale_factor=factors, mode="nearest")

    replace_modules(vae, nn.Upsample, nearest)


def _outputs(caches: Mapping[str, Any]) -> list[str]:
    return [f"new_{name}" for name in caches]


def _padded(cache: Tensor, frames: int) -> Tensor:
    """[1, C, F, H, W] -> that many frames, with zeros before its own."""
    missing = frames - cache.shape[2]
    return functional.pad(cache, (0, 0, 0, 0, missing, 0)) if missing else cache


def _caches_after(part: str, vae: Any, chunks: Sequence[tuple[int, ...]]) -> dict[int, tuple[int, ...]]:
    """Shapes [1, C, F, H, W] of the caches after some chunks, by their number; nothing is computed."""
    modules = (vae.post_quant_conv, vae.decoder) if part == VAE_DECODER else (vae.encoder,)
    *before, body = (copy.deepcopy(module).to("meta") for module in modules)
    kept: defaultdict[int, Any] = defaultdict(lambda: None)
    for number, shape in enumerate(chunks):
        chunk = torch.zeros(1, *shape, dtype=vae.dtype, device="meta")
        for module in before:
            chunk = module(chunk)
        options = {"first_chunk": number == 0} if part == VAE_DECODER else {}
        body(chunk, feat_cache=kept, feat_idx=[0], **options)
    return {index: tuple(cache.shape) for index, cache in kept.items() if isinstance(cache, Tensor)}
