# SPDX-License-Identifier: Apache-2.0
"""Which tile and bucket shapes suit a token grid, and which grids near one can be tiled at all.

The published models use tiles of 360 and 432 tokens (at 720p) and buckets of 12. Other sizes
need other shapes, because tile and bucket must divide the grid. Among the divisors of the grid the shape of lowest

    cost = log(elongation) + 8 * log(factor by which the token count misses its range)

is taken; equal costs are decided for the smaller frame extent, then the smaller height. The reasons:

- Near-cubic (in tokens, i.e. 4 frames x 16 x 16 pixels each): attention falls off in all three directions, so a cube
  holds the most relevant neighbours for its token count. `elongation` is the longest side over the shortest one; a side
  that spans its whole axis cannot be made longer and does not count as short.
- Token count before shape (the factor 8): missing the range by 10 % costs as much as doubling the elongation, because
  the token count sets density, quality and kernel efficiency alike.
- A grid of fewer than 27 published tiles gets proportionally smaller ones, and a tile that leaves at most three along
  every axis is taken only if there is no other: the 3x3x3 window would see everything, and the sliding branch would be
  full attention under another name.

A shape that misses its range by more than 1.6x or is elongated more than 8x is refused: that grid cannot be tiled.
For the published grids this gives the published shapes: (20, 45, 80) -> (5, 9, 8) and (30, 45, 80) -> (6, 9, 8),
buckets (2, 3, 2).
"""

from __future__ import annotations

import itertools
import math
from functools import cache, lru_cache

from vorta_trt.model.boxes import Shape

TILE_TOKENS = (360, 432)  # the two published tiles, (5, 9, 8) and (6, 9, 8)
SMALLEST_TILE_TOKENS = 4  # smaller ones are rather single tokens than tiles
PUBLISHED_WINDOW: Shape = (3, 3, 3)
BUCKET_TOKENS = (12, 12)  # published: (2, 3, 2)
COUNT_WEIGHT = 8.0
MAX_COUNT_FACTOR = 1.6
MAX_ELONGATION = 8.0
SEARCH_RADIUS = 6  # tokens along each axis, when looking for the nearest grids that can be tiled


@cache
def divisors(number: int) -> tuple[int, ...]:
    """All divisors of `number`, ascending."""
    return tuple(candidate for candidate in range(1, number + 1) if number % candidate == 0)


def elongation(shape: Shape, grid: Shape) -> float:
    """Longest side over the shortest side that could have been longer; 1.0 if every side spans its axis."""
    extendable = [side for side, axis in zip(shape, grid, strict=True) if side < axis]
    return max(shape) / min(extendable) if extendable else 1.0


def _choose(grid: Shape, tokens: tuple[float, float], window: Shape | None = None) -> Shape | None:
    """The divisor shape of lowest cost (see the module's text), or None if every one breaks a limit.

    With a `window` (in blocks), shapes whose window sees the whole grid come last.
    """
    low, high = tokens
    best: tuple[bool, float, Shape] | None = None
    frames, height, width = grid
    for shape in itertools.product(divisors(frames), divisors(height), divisors(width)):
        count = math.prod(shape)
        factor = max(1.0, count / high, low / count)
        stretch = elongation(shape, grid)
        if factor > MAX_COUNT_FACTOR or stretch > MAX_ELONGATION:
            continue
        sees_all = window is not None and all(
            axis <= size * blocks for axis, size, blocks in zip(grid, shape, window, strict=True)
        )
        # Rounded, so that shapes of equal cost compare equal on every platform and the tie-break decides.
        candidate = (sees_all, round(math.log(stretch) + COUNT_WEIGHT * math.log(factor), 9), shape)
        if best is None or candidate < best:
            best = candidate
    return best[2] if best else None


@lru_cache(maxsize=4096)
def choose_tile(grid: Shape) -> Shape | None:
    """Tile shape for `grid`, or None if the grid cannot be tiled."""
    count = math.prod(grid)
    scale = min(1.0, count / (27 * TILE_TOKENS[0]))
    smallest = min(SMALLEST_TILE_TOKENS, count)
    tokens = (max(smallest, scale * TILE_TOKENS[0]), max(smallest, scale * TILE_TOKENS[1]))
    return _choose(grid, tokens, PUBLISHED_WINDOW)


@lru_cache(maxsize=4096)
def choose_bucket(grid: Shape) -> Shape | None:
    """Bucket shape for `grid`, or None if it has none near 12 tokens."""
    count = math.prod(grid)
    return _choose(grid, (min(BUCKET_TOKENS[0], count), min(BUCKET_TOKENS[1], count)))


def nearest_grids(wanted: tuple[float, float, float], count: int = 3) -> list[Shape]:
    """The `count` grids nearest to `wanted` (relative change, summed over the axes) that can be tiled."""

    def axis_candidates(size: float) -> range:
        return range(max(1, math.floor(size) - SEARCH_RADIUS), math.ceil(size) + SEARCH_RADIUS + 1)

    def distance(grid: Shape) -> tuple[float, Shape]:
        change = sum(abs(math.log(axis / max(size, 0.5))) for axis, size in zip(grid, wanted, strict=True))
        return round(change, 9), grid

    frames, height, width = map(axis_candidates, wanted)
    candidates = sorted(itertools.product(frames, height, width), key=distance)
    tileable = (grid for grid in candidates if choose_tile(grid) and choose_bucket(grid))
    return list(itertools.islice(tileable, count))
