# SPDX-License-Identifier: Apache-2.0
"""The sliding branch as others need it: tokens in tile order, and which blocks of the score matrix they compute.

In tile order the tokens of a tile lie side by side, so the mask is made of few large rectangles. Every token belongs to
a class: its tile, valid text, or padding. What a token sees depends on its class alone, so block lists are computed
from the small matrix of classes; no S x S mask is ever made.

Letters: S video tokens, T text tokens, C classes (M tiles, text, padding), b tokens of a block, R blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vorta_trt.model import AttentionGeometry
from vorta_trt.model.indices import tile_of_token, tile_order, window_table

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class BlockLists:
    """Key blocks of every query block, those that are computed whole and those that need the mask: CSR of fixed width.

    counts int32 [R], indices int32 [R, widest]; behind a row's count the indices are 0.
    """

    full_counts: Tensor
    full_indices: Tensor
    partial_counts: Tensor
    partial_indices: Tensor


def token_order(geometry: AttentionGeometry) -> Tensor:
    """Token id at each position, [S+T]: video in tile order, then text."""
    return torch.cat([tile_order(geometry), torch.arange(geometry.video_tokens, geometry.tokens)])


def token_classes(geometry: AttentionGeometry, text_length: int) -> Tensor:
    """Class at each position of the tile order, [S+T]: its tile, then M for valid text, M + 1 for padding."""
    tiles = math.prod(geometry.tiles)
    text = torch.full((geometry.text_tokens,), tiles + 1)
    text[:text_length] = tiles
    return torch.cat([tile_of_token(geometry).sort().values, text])


def visible_classes(geometry: AttentionGeometry) -> Tensor:
    """Which classes a query of each class sees: bool [C, C]."""
    windows = window_table(geometry)  # [M, W]
    tiles = len(windows)
    visible = torch.zeros(tiles + 2, tiles + 2, dtype=torch.bool)
    visible[:tiles, :tiles].scatter_(1, windows, True)
    visible[: tiles + 1, tiles] = True  # everything valid sees the valid text
    visible[tiles, :tiles] = True  # and text sees everything valid
    return visible


def block_lists(geometry: AttentionGeometry, text_length: int, block: int = 128) -> BlockLists:
    """The key blocks of every query block, `block` tokens each. A shorter one at the end counts as partial."""
    classes = token_classes(geometry, text_length)  # [S+T]
    visible = visible_classes(geometry)  # [C, C]
    seen = visible[:, classes]  # [C, S+T]: a position as seen from each class
    some = _by_block(seen, block, whole=False)  # [C, R]
    every = _by_block(seen, block, whole=True)  # [C, R]
    some = _by_block(some[classes].T, block, whole=False).T  # [R, R]
    every = _by_block(every[classes].T, block, whole=True).T  # [R, R]
    return BlockLists(*_lists(every), *_lists(some & ~every))


def _by_block(flags: Tensor, block: int, whole: bool) -> Tensor:
    """Any (or all, if `whole`) over blocks of the last axis: [*, positions] -> [*, R]."""
    missing = -flags.shape[-1] % block
    blocks = functional.pad(flags, (0, missing)).unflatten(-1, (-1, block))  # [*, R, b]
    merged: Tensor = blocks.all(-1) if whole else blocks.any(-1)
    return merged


def _lists(flags: Tensor) -> tuple[Tensor, Tensor]:
    """From bool [R, R] -> counts [R] and the indices of the set ones, ascending, [R, widest]."""
    counts = flags.sum(1)  # [R]
    order = flags.to(torch.uint8).argsort(dim=1, descending=True, stable=True)  # [R, R]
    order = order[:, : max(1, int(counts.max()))]  # [R, widest]
    order = order.masked_fill(torch.arange(order.shape[1]) >= counts.unsqueeze(1), 0)
    return counts.int(), order.int().contiguous()


def mask_function(geometry: AttentionGeometry, text_length: int) -> MaskFunction:
    """The mask as arithmetic on positions of the tile order, the form in which FlexAttention compiles it best.

    It takes (batch, head, query position, key position) and has no tables to look up.
    """
    video, valid = geometry.video_tokens, geometry.video_tokens + text_length
    grid, tile, tiles, window = geometry.grid, geometry.tile, geometry.tiles, geometry.window_tiles

    def extent(axis: int, index: Tensor) -> Tensor | int:
        """Tokens along an axis of the tile `index`; the last may be shorter."""
        if grid[axis] % tile[axis] == 0:
            return tile[axis]
        return (grid[axis] - index * tile[axis]).clamp(1, tile[axis])  # behind the video tokens there is no tile

    def tile_index(position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        layer = tile[0] * grid[1] * grid[2]
        frame = position // layer
        frames = extent(0, frame)
        in_layer = position - frame * layer
        row = in_layer // (frames * tile[1] * grid[2])
        in_row = in_layer - row * frames * tile[1] * grid[2]
        return frame, row, in_row // (frames * extent(1, row) * tile[2])

    def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        in_window = (query < video) & (key < video)
        own, other = tile_index(query), tile_index(key)
        for axis in range(3):
            first = (own[axis] - window[axis] // 2).clamp(0, tiles[axis] - window[axis])
            in_window = in_window & (other[axis] >= first) & (other[axis] < first + window[axis])
        text_query = (query >= video) & (query < valid) & (key < valid)
        text_key = (query < video) & (key >= video) & (key < valid)
        return in_window | text_query | text_key

    return mask
