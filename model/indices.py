# SPDX-License-Identifier: Apache-2.0
"""Index tables of a geometry, as int64 torch tensors on the CPU: tile order, tile windows, buckets.

Letters: S video tokens, M tiles, W tiles in a window, G buckets, K tokens in a bucket.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.tiling import Shape


def _blocked_raster(grid: Shape, block: Shape) -> Tensor:
    """Raster token ids of every block, blocks and the tokens inside each in raster order."""
    counts = [axis // size for axis, size in zip(grid, block, strict=True)]
    tokens = torch.arange(math.prod(grid))  # [S]
    split = tokens.view(counts[0], block[0], counts[1], block[1], counts[2], block[2])
    return split.permute(0, 2, 4, 1, 3, 5).reshape(math.prod(counts), math.prod(block))  # [blocks, block tokens]


def tile_table(geometry: AttentionGeometry) -> Tensor:
    """Raster token ids of every tile: [M, tile_tokens]."""
    return _blocked_raster(geometry.grid, geometry.tile)


def tile_order(geometry: AttentionGeometry) -> Tensor:
    """Raster token id at each position of the tile order: [S]; tokens of a tile lie side by side."""
    return tile_table(geometry).flatten()


def bucket_table(geometry: AttentionGeometry) -> Tensor:
    """Raster token ids of every bucket, raster order inside: [G, K]; column `geometry.centre` is the centre."""
    return _blocked_raster(geometry.grid, geometry.bucket)


def window_start(geometry: AttentionGeometry, tile: Shape) -> Shape:
    """First tile (along each axis) of the window of `tile`.

    The window's centre is the tile itself, clamped so that the window stays inside the grid.
    """
    first = (
        min(max(position - width // 2, 0), tiles - width)
        for position, width, tiles in zip(tile, geometry.window_tiles, geometry.tiles, strict=True)
    )
    frame, height, width = first
    return frame, height, width


def window_table(geometry: AttentionGeometry) -> Tensor:
    """Tile ids that each tile sees, ascending: [M, W]."""
    tile_ids = torch.arange(math.prod(geometry.tiles)).view(geometry.tiles)
    rows = [
        tile_ids[tuple(slice(start, start + size) for start, size in zip(first, geometry.window_tiles, strict=True))]
        for first in (window_start(geometry, tile) for tile in _all_tiles(geometry))
    ]
    return torch.stack([row.flatten() for row in rows])  # [M, W]


def window_groups(geometry: AttentionGeometry) -> list[tuple[Tensor, Tensor]]:
    """Tiles that share a window, as (query token ids, key token ids), both ascending.

    The queries cover every token once. Clamping gives all tiles near a border one window; computing them together
    saves gathering its keys again.
    """
    groups: dict[Shape, list[int]] = {}
    for tile_id, tile in enumerate(_all_tiles(geometry)):
        groups.setdefault(window_start(geometry, tile), []).append(tile_id)
    tokens, windows = tile_table(geometry), window_table(geometry)
    return [
        (tokens[tile_ids].flatten().sort().values, tokens[windows[tile_ids[0]]].flatten().sort().values)
        for tile_ids in groups.values()
    ]


def _all_tiles(geometry: AttentionGeometry) -> list[Shape]:
    frames, height, width = geometry.tiles
    return list(itertools.product(range(frames), range(height), range(width)))
