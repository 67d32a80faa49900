# SPDX-License-Identifier: Apache-2.0
"""A token grid cut into boxes, tiles and buckets alike, and what a window of boxes sees along one axis.

Boxes start at multiples of their size. Where the size does not divide the grid, the last box along an axis is shorter.
Everything here is closed form: nothing grows with the extent of the grid.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

Shape = tuple[int, int, int]
"""Frames, height, width; in tokens, or in boxes."""


def box_counts(grid: Shape, box: Shape) -> Shape:
    """Boxes along each axis."""
    frames, height, width = (-(-extent // size) for extent, size in zip(grid, box, strict=True))
    return frames, height, width


def box_centre(box: Shape) -> int:
    """Index of a box's centre (t//2, h//2, w//2) among its tokens in raster order."""
    frames, height, width = box
    return (frames // 2 * height + height // 2) * width + width // 2


@dataclass(frozen=True)
class BoxKind:
    """Boxes of one shape.

    Attributes:
        shape: Tokens of a box along each axis.
        counts: Boxes of that shape along each axis.
        origin: Position of the first token of the first box along each axis.
    """

    shape: Shape
    counts: Shape
    origin: Shape

    @property
    def tokens(self) -> int:
        """Tokens of a box."""
        return math.prod(self.shape)

    @property
    def boxes(self) -> int:
        """Boxes of this shape."""
        return math.prod(self.counts)


def box_kinds(grid: Shape, box: Shape) -> list[BoxKind]:
    """The shapes that boxes have: the whole one first, then those that the end of an axis cuts short; at most 8."""
    axes = []
    for extent, size in zip(grid, box, strict=True):
        whole, rest = divmod(extent, size)
        pieces = [(size, whole, 0), (rest, 1, whole * size)]  # tokens, boxes, first token
        axes.append([piece for piece in pieces if piece[0] and piece[1]])
    kinds = []
    for chosen in itertools.product(*axes):
        shape, counts, origin = zip(*chosen, strict=True)
        kinds.append(BoxKind(shape, counts, origin))
    return kinds


@dataclass(frozen=True)
class AxisGroup:
    """Groups of equal size along one axis; a group is a run of neighbouring boxes that see the same window.

    Attributes:
        count: Number of groups.
        first: First token of the first group.
        tokens: Tokens of a group.
        seen_first: First token of the first group's window.
        seen: Tokens of a window.
        step: Distance in tokens from one group to the next, and from one window to the next.
    """

    count: int
    first: int
    tokens: int
    seen_first: int
    seen: int
    step: int


def axis_groups(extent: int, size: int, window: int) -> list[AxisGroup]:
    """The groups of an axis of `extent` tokens, in boxes of `size`, with a window of `window` boxes (odd); at most 3.

    The window's centre is the box itself, clamped so that the window stays inside the grid. So the boxes near either
    end share a window; each box between them has its own.
    """
    boxes = -(-extent // size)
    if window >= boxes:  # the whole axis is seen
        return [AxisGroup(1, 0, extent, 0, extent, 0)]
    border = (window // 2 + 1) * size  # tokens of the boxes that see the first window
    end = (boxes - window // 2 - 1) * size  # first token of the boxes that see the last window
    last = (boxes - window) * size  # first token of the last window
    groups = [
        AxisGroup(1, 0, border, 0, window * size, 0),
        AxisGroup(boxes - window - 1, border, size, size, window * size, size),
        AxisGroup(1, end, extent - end, last, extent - last, 0),
    ]
    return [group for group in groups if group.count]


def window_pairs(grid: Shape, tile: Shape, window: Shape) -> int:
    """Number of query-key pairs over the grid, where a query token sees the keys in its window of tiles."""
    axes = itertools.starmap(axis_groups, zip(grid, tile, window, strict=True))
    return math.prod(sum(group.count * group.tokens * group.seen for group in groups) for groups in axes)


def least_window(grid: Shape, tile: Shape, window: Shape) -> int:
    """Tokens of the smallest window of any tile."""
    axes = itertools.starmap(axis_groups, zip(grid, tile, window, strict=True))
    return math.prod(min(group.seen for group in groups) for groups in axes)
