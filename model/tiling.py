# SPDX-License-Identifier: Apache-2.0
"""Which tile and bucket a token grid gets.

The tile, by this rule:

1. The published tile of the family, where it divides the grid and its window covers at least the published share of
   the grid and not all of it.
2. Otherwise a tile whose *every* window covers at least the published share (13.5 % and 10.8 % of the video tokens at
   the two published sizes), also the smaller windows at the end of an axis where the tile does not divide the grid;
3. of these, one of least work. Work is the exact number of query-key pairs, counted in whole blocks as the kernels
   compute them: 128 queries that share a window, and keys in boxes of one frame (Hopper, 16 bits) or tile by tile (the
   other kernels), half of either. Work within 5 % of the least counts as the least;
4. of these, the one nearest in shape to the published tile.

Attention falls off in all three directions, so a tile may not be of any shape: the candidates are the published tile,
scaled until its window covers the published share, with no side shorter or longer by a factor of more than 2. Along
each axis only the smallest size for a number of tiles is tried: a larger one has larger windows and a shorter last
tile. In grids of few tokens, where no such window covers less than everything, the factor is raised twice; a grid that
has none even then is seen whole. Tiles have about 4 tokens or more.

The bucket is the published one, (2, 3, 2), which need not divide the grid either; along an axis that is shorter, it is
cut off and the others grow: it has 12 tokens if the grid has room for them.

For the published grids this gives the published shapes: (20, 45, 80) -> (5, 9, 8) and (30, 45, 80) -> (6, 9, 8).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import lru_cache

from vorta_trt.model.boxes import Shape, axis_groups, least_window, window_pairs

PUBLISHED_WINDOW: Shape = (3, 3, 3)
PUBLISHED_BUCKET: Shape = (2, 3, 2)
SMALLEST_TILE_TOKENS = 4  # smaller ones are rather single tokens than tiles
LARGEST_STRETCH = 2.0  # of a side, against the scaled published tile
SAME_WORK = 1.05
MOST_SIZES = 16  # tried along an axis
QUERY_BLOCK = 128  # rows of a block of queries, of all kernels
KEY_BLOCK = 144  # keys of a block of the 16-bit Hopper kernel, whose boxes lie in one frame
KEY_CHUNK = 32  # keys of a chunk of the kernels that go tile by tile


@lru_cache(maxsize=4096)
def choose_tile(grid: Shape, published_grid: Shape, published_tile: Shape) -> Shape:
    """Tile for `grid`, in a family with that published grid and tile."""
    share = _least_coverage(published_grid, published_tile)
    if all(extent % size == 0 for extent, size in zip(grid, published_tile, strict=True)):
        if share <= _least_coverage(grid, published_tile) < 1:
            return published_tile
    ideal = _scaled(grid, published_tile, share)
    for stretch in (LARGEST_STRETCH, LARGEST_STRETCH**2, LARGEST_STRETCH**3):
        frames, height, width = (_sizes(extent, side, stretch) for extent, side in zip(grid, ideal, strict=True))
        if tiles := [
            tile for tile in itertools.product(frames, height, width) if share <= _least_coverage(grid, tile) < 1
        ]:
            return _least_work(grid, tiles, ideal)
    return _least_work(grid, [(round(ideal[0]), round(ideal[1]), round(ideal[2]))], ideal)


def choose_bucket(grid: Shape) -> Shape:
    """Bucket for `grid`."""
    if all(size <= extent for size, extent in zip(PUBLISHED_BUCKET, grid, strict=True)):
        return PUBLISHED_BUCKET
    count = math.prod(PUBLISHED_BUCKET)
    frames, height, width = (range(1, min(extent, count) + 1) for extent in grid)
    fitting = [shape for shape in itertools.product(frames, height, width) if math.prod(shape) <= count]
    return min(fitting, key=lambda shape: (-math.prod(shape), _distance(shape, PUBLISHED_BUCKET), shape))


def _least_coverage(grid: Shape, tile: Shape) -> float:
    """Share of the video tokens in the smallest window of any query."""
    return least_window(grid, tile, PUBLISHED_WINDOW) / math.prod(grid)


def _scaled(grid: Shape, tile: Shape, share: float) -> tuple[float, float, float]:
    """Sides of a tile shaped like `tile` whose window covers `share`; no side is longer than its axis."""

    def sides(scale: float) -> tuple[float, float, float]:
        frame, height, width = (min(extent, scale * size) for extent, size in zip(grid, tile, strict=True))
        return frame, height, width

    def enough(scale: float) -> bool:
        covered = 1.0
        for side, extent, window in zip(sides(scale), grid, PUBLISHED_WINDOW, strict=True):
            covered *= min(1.0, window * side / extent)
        return covered >= share and math.prod(sides(scale)) >= min(SMALLEST_TILE_TOKENS, math.prod(grid))

    low, high = 0.0, float(max(grid))
    for _ in range(64):  # halves the interval to the last bit
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return sides(high)


def _sizes(extent: int, side: float, stretch: float) -> list[int]:
    """Sizes to try along an axis: the smallest of each number of tiles, at most `stretch` away from `side`."""
    shortest = max(1, math.ceil(round(side / stretch, 9)))
    longest = max(shortest, min(extent, math.floor(round(side * stretch, 9))))
    step = max(1, (longest - shortest) // MOST_SIZES)
    sizes = {max(shortest, -(-extent // -(-extent // size))) for size in range(shortest, longest + 1, step)}
    return sorted(sizes)


def _least_work(grid: Shape, tiles: list[Shape], ideal: tuple[float, float, float]) -> Shape:
    """The tile of least work; of all tiles within 5 % of it, the one nearest in shape to `ideal`."""
    by_pairs = sorted((window_pairs(grid, tile, PUBLISHED_WINDOW), tile) for tile in tiles)
    found: list[tuple[int, Shape]] = []
    least = math.inf
    for pairs, tile in by_pairs:
        if 2 * pairs > least * SAME_WORK:  # work in whole blocks is no less
            break
        work = _twice_the_work(grid, tile)
        least = min(least, work)
        found.append((work, tile))
    same = [tile for work, tile in found if work <= least * SAME_WORK]
    return min(same, key=lambda tile: (_distance(tile, ideal), tile))


def _distance(shape: Shape, other: Shape | tuple[float, float, float]) -> float:
    """How far two shapes differ; rounded, so that equal distances are equal on every platform."""
    return round(sum(math.log(side / wanted) ** 2 for side, wanted in zip(shape, other, strict=True)), 9)


def _twice_the_work(grid: Shape, tile: Shape) -> int:
    """Query-key pairs in whole blocks, in boxes plus tile by tile."""
    axes = (axis_groups(*axis) for axis in zip(grid, tile, PUBLISHED_WINDOW, strict=True))
    work = 0
    for groups in itertools.product(*axes):
        rows = -(-math.prod(group.tokens for group in groups) // QUERY_BLOCK) * QUERY_BLOCK
        frames, height, width = (group.seen for group in groups)
        keys = _keys_in_boxes(frames, height, width) + _keys_by_tile((frames, height, width), tile)
        work += math.prod(group.count for group in groups) * rows * keys
    return work


@lru_cache(maxsize=1 << 14)
def _keys_in_boxes(frames: int, height: int, width: int) -> int:
    """Keys of a window in whole blocks of KEY_BLOCK, made of equal boxes of one frame that cover the window."""
    best = math.inf
    for across in _cuts(width):
        for down in _cuts(height):
            area = -(-width // across) * -(-height // down)
            if area <= KEY_BLOCK:
                best = min(best, -(-frames * across * down // (KEY_BLOCK // area)))
    return int(best) * KEY_BLOCK


def _cuts(extent: int) -> Iterator[int]:
    """The least numbers of equal pieces, of at most KEY_BLOCK tokens, for each size of a piece."""
    size = min(extent, KEY_BLOCK)
    while size:
        pieces = -(-extent // size)
        yield pieces
        size = -(-extent // pieces) - 1 if pieces < extent else 0


def _keys_by_tile(window: Shape, tile: Shape) -> int:
    """Keys of a window in whole chunks of KEY_CHUNK, each of one tile."""
    axes = [((size, seen // size), (seen % size, 1)) for seen, size in zip(window, tile, strict=True)]
    return sum(
        math.prod(count for _, count in pieces) * -(-math.prod(size for size, _ in pieces) // KEY_CHUNK) * KEY_CHUNK
        for pieces in itertools.product(*axes)
    )
