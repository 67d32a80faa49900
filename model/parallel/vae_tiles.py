# SPDX-License-Identifier: Apache-2.0
"""Decoding a video in tiles on several ranks: each decodes some of the tiles, and every rank blends all of them.

diffusers cuts the latents into overlapping tiles, decodes one after the other, and blends them where they overlap. Here
its own code runs twice. In the first run every rank decodes the tiles at its turn, takes zeros for the others, and
blends nothing. Then the ranks exchange their tiles. In the second run every call of the decoder returns a tile that is
decoded already. The video is the same as on one rank, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, distributed, nn

from vorta_trt.model.parallel.groups import Group, joined

BLENDS = ("blend_v", "blend_h", "blend_t")  # methods of diffusers' VAEs
ShapeOf = Callable[[tuple[int, ...]], tuple[int, ...]]


def decode_in_tiles(vae: Any, decode: Callable[[], Tensor], shape_of: ShapeOf, group: Group) -> Tensor:
    """The result of `decode()`, which calls the decoder of a VAE once for each tile.

    Args:
        vae: VAE of diffusers, with tiling on.
        decode: Decodes with this VAE; the same on all ranks.
        shape_of: From the shape of a tile to the shape that the decoder makes of it, [1, C, F, H, W] both.
        group: Process group of torch.distributed.

    Raises:
        Exception: The group cannot be used, see `joined`.
    """
    members = joined(group)
    ranks, rank = members.size(), members.rank()
    shapes: list[tuple[int, ...]] = []
    own: dict[int, Tensor] = {}

    def take_turns(decoder: Any, tile: Tensor) -> Tensor:
        number, shape = len(shapes), shape_of(tuple(tile.shape))
        shapes.append(shape)
        if number % ranks != rank:
            return tile.new_zeros(()).expand(shape)
        own[number] = decoder(tile)
        return own[number]

    with _standing_in(vae, take_turns), _without_blending(vae):
        example = decode()
    tiles = []
    for number, shape in enumerate(shapes):
        tile = own.pop(number).contiguous() if number in own else example.new_empty(shape)
        distributed.broadcast(tile, group=members, group_src=number % ranks)
        tiles.append(tile)
    given = iter(tiles)
    del example
    with _standing_in(vae, lambda decoder, tile: next(given)):
        return decode()


class _StandIn(nn.Module):
    """Stands in for a decoder and calls a function instead."""

    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._call = call

    def forward(self, tile: Tensor) -> Tensor:
        return self._call(tile)


@contextmanager
def _standing_in(vae: Any, call: Callable[[Any, Tensor], Tensor]) -> Iterator[None]:
    decoder = vae.decoder
    vae.decoder = _StandIn(lambda tile: call(decoder, tile))
    try:
        yield
    finally:
        vae.decoder = decoder


@contextmanager
def _without_blending(vae: Any) -> Iterator[None]:
    """Within the block, the blending methods of this VAE return their second tile as it is."""
    names = [name for name in BLENDS if hasattr(vae, name)]
    for name in names:
        setattr(vae, name, lambda before, tile, extent: tile)
    try:
        yield
    finally:
        for name in names:
            delattr(vae, name)


def shapes_of(channels: int, temporal: int, spatial: int) -> ShapeOf:
    """The shapes that a decoder makes whose first latent frame stands for a single frame.

    Args:
        channels: Channels of the video.
        temporal: Frames that each further latent frame stands for.
        spatial: Pixels a side of a latent.
    """

    def shape_of(tile: tuple[int, ...]) -> tuple[int, ...]:
        batch, _, frames, height, width = tile
        return batch, channels, (frames - 1) * temporal + 1, height * spatial, width * spatial

    return shape_of
