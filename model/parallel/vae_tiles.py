# SPDX-License-Identifier: Apache-2.0
"""Decoding a video in tiles on several ranks: each decodes some of the tiles, and all blend all of them.

diffusers cuts the latents into overlapping tiles, decodes one after the other, and blends them where they overlap. Here
its own code runs twice. The first time, every rank decodes the tiles of which it is the turn, in the place of others
zeros stand, and nothing is blended. Then the ranks exchange what they have made, and the second time every call of the
decoder gives the tile that is there. The video is that of one rank, bit for bit.
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
    """What `decode()` gives, which calls the decoder of a VAE once for each tile.

    Args:
        vae: diffusers', in tiles.
        decode: Decodes with it; the same on all ranks.
        shape_of: The shape of what the decoder makes of a tile of a shape, [1, C, F, H, W] both.
        group: Of torch.distributed.

    Raises:
        Exception: As `joined`.
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
    """Is called in the place of a decoder."""

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
    """The methods of this one object give their second tile as it is."""
    names = [name for name in BLENDS if hasattr(vae, name)]
    for name in names:
        setattr(vae, name, lambda before, tile, extent: tile)
    try:
        yield
    finally:
        for name in names:
            delattr(vae, name)


def shapes_of(channels: int, temporal: int, spatial: int) -> ShapeOf:
    """The shapes that a decoder makes which begins with a frame alone.

    Args:
        channels: Of the video.
        temporal: Frames that each further latent frame stands for.
        spatial: Pixels a side of a latent.
    """

    def shape_of(tile: tuple[int, ...]) -> tuple[int, ...]:
        batch, _, frames, height, width = tile
        return batch, channels, (frames - 1) * temporal + 1, height * spatial, width * spatial

    return shape_of
