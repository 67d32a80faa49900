# SPDX-License-Identifier: Apache-2.0
"""Index tables of a geometry, as int64 torch tensors on the CPU: tile order, tile windows, buckets.

Letters: S video tokens, M tiles, W tiles in a window, G buckets of one shape, K tokens in a bucket.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from vorta_trt.model.boxes import BoxKind, Shape, axis_groups, box_kinds
from vorta_trt.model.geometry import AttentionGeometry


def tile_of_token(geometry: AttentionGeometry) -> Tensor:
    """Tile id of every video token: [S]; tiles are numbered in raster order."""
    frame, row, column = (
        torch.arange(extent) // size for extent, size in zip(geometry.grid, geometry.tile, strict=True)
    )
    _, height, width = geometry.tiles
    return ((frame[:, None, None] * height + row[:, None]) * width + column).flatten()


def tile_order(geometry: AttentionGeometry) -> Tensor:
    """Raster token id at each position of the tile order: [S]; tokens of a tile lie side by side, in raster order."""
    return tile_of_token(geometry).argsort(stable=True)


def bucket_tables(geometry: AttentionGeometry) -> list[tuple[BoxKind, Tensor]]:
    """Raster token ids of every bucket, one table [G, K] for each shape of a bucket.

    There is one where the bucket divides the grid, and at most 8. Buckets and the tokens inside each are in raster
    order.
    """
    return [(kind, _raster_ids(geometry.grid, kind)) for kind in box_kinds(geometry.grid, geometry.bucket)]


def _raster_ids(grid: Shape, kind: BoxKind) -> Tensor:
    """Raster token ids of boxes of one shape: [boxes, box tokens]."""
    axes = [
        (torch.arange(count * size) + origin).view(count, size)
        for count, size, origin in zip(kind.counts, kind.shape, kind.origin, strict=True)
    ]
    frame, row, column = axes  # [boxes along the axis, tokens]
    _, height, width = grid
    ids = (frame[:, None, None, :, None, None] * height + row[:, None, None, :, None]) * width + column[:, None, None]
    return ids.reshape(kind.boxes, kind.tokens)


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
    frames, height, width = map(range, geometry.tiles)
    rows = [
        tile_ids[tuple(slice(start, start + size) for start, size in zip(first, geometry.window_tiles, strict=True))]
        for first in (window_start(geometry, tile) for tile in itertools.product(frames, height, width))
    ]
    return torch.stack([row.flatten() for row in rows])  # [M, W]


def window_groups(geometry: AttentionGeometry) -> list[tuple[Tensor, Tensor]]:
    """Tiles that share a window, as (query token ids, key token ids), both ascending.

    The queries cover every token once. Clamping gives all tiles near a border one window; computing them together
    saves gathering its keys again.
    """
    axes = [list(_groups_of_axis(*axis)) for axis in zip(geometry.grid, geometry.tile, geometry.window, strict=True)]
    return [
        (_box_ids(geometry.grid, [part[0] for part in parts]), _box_ids(geometry.grid, [part[1] for part in parts]))
        for parts in itertools.product(*axes)
    ]


def _groups_of_axis(extent: int, size: int, window: int) -> Iterator[tuple[range, range]]:
    """Along one axis: tokens that share a window, and the tokens of that window."""
    for group in axis_groups(extent, size, window):
        for number in range(group.count):
            first, seen = group.first + number * group.step, group.seen_first + number * group.step
            yield range(first, first + group.tokens), range(seen, seen + group.seen)


def _box_ids(grid: Shape, ranges: list[range]) -> Tensor:
    """Raster token ids of the box of the grid that three ranges span, ascending."""
    frame, row, column = (torch.arange(part.start, part.stop) for part in ranges)
    _, height, width = grid
    return ((frame[:, None, None] * height + row[:, None]) * width + column).flatten()
