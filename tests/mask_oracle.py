# SPDX-License-Identifier: Apache-2.0
"""An independent routed attention, written from the method's text alone: brute-force boolean masks, in float64.

It shares no code with the package. Every token of the grid is a row with its coordinates; the keys that a query sees
are a row of an S x S matrix of booleans, set entry by entry; coresets are chosen bucket by bucket in plain Python.

Letters: B batch, S video tokens, T text tokens, N heads, D head dim.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Triple = tuple[int, int, int]
FULL, CORESET, SLIDING = 0, 1, 2
SCALE = 0.7


@dataclass(frozen=True)
class Problem:
    """One problem; the fields up to `text_tokens` are the operator's attributes."""

    grid: Triple
    tile: Triple
    window: Triple
    bucket: Triple
    keep: int
    coreset_keys: str
    text_tokens: int

    @property
    def places(self) -> list[Triple]:
        """Coordinates of every video token, in raster order."""
        frames, height, width = self.grid
        return [(f, h, w) for f in range(frames) for h in range(height) for w in range(width)]


def seen_by_axis(extent: int, size: int, window: int) -> list[list[bool]]:
    """Which token sees which along one axis: a query sees the window of tiles around its own tile."""
    tiles = math.ceil(extent / size)
    seen = []
    for query in range(extent):
        centre = min(max(query // size, window // 2), tiles - 1 - window // 2)
        visible = [tile for tile in range(tiles) if abs(tile - centre) <= window // 2]
        if window >= tiles:  # the whole axis is seen
            visible = list(range(tiles))
        else:
            assert len(visible) == window
        seen.append([key // size in visible for key in range(extent)])
    return seen


def sliding_mask(problem: Problem) -> np.ndarray:
    """Which video tokens a video query of a sliding head sees, bool [S, S]."""
    axes = [seen_by_axis(*axis) for axis in zip(problem.grid, problem.tile, problem.window, strict=True)]
    places = problem.places
    return np.array([
        [all(axes[axis][query[axis]][key[axis]] for axis in range(3)) for key in places] for query in places
    ])  # fmt: skip


def buckets(problem: Problem) -> list[tuple[int, list[int]]]:
    """Centre and members (token ids in raster order) of every bucket."""
    members: dict[Triple, list[int]] = {}
    for token, place in enumerate(problem.places):
        f, h, w = (at // size for at, size in zip(place, problem.bucket, strict=True))
        members.setdefault((f, h, w), []).append(token)
    found = []
    for bucket, tokens in members.items():
        first = [at * size for at, size in zip(bucket, problem.bucket, strict=True)]
        has = [
            min(size, extent - start) for size, extent, start in zip(problem.bucket, problem.grid, first, strict=True)
        ]
        middle = tuple(start + extent // 2 for start, extent in zip(first, has, strict=True))
        centre = problem.places.index(middle)  # type: ignore[arg-type]
        assert centre in tokens and len(tokens) == math.prod(has)
        found.append((centre, tokens))
    return found


def choose(problem: Problem, tokens: np.ndarray) -> tuple[set[int], dict[int, int], float]:
    """The coreset by the similarities of `tokens` [S, D].

    Returns:
        The kept tokens, the centre of every dropped one, and the smallest gap between a kept and a dropped similarity.
    """
    norms = np.linalg.norm(tokens, axis=1)
    kept: set[int] = set()
    centre_of: dict[int, int] = {}
    gap = math.inf
    for centre, members in buckets(problem):
        keep = max(1, len(members) * problem.keep // math.prod(problem.bucket))
        similarity = {
            token: float(tokens[token] @ tokens[centre]) / max(float(norms[token] * norms[centre]), 1e-300)
            for token in members
            if token != centre
        }
        ranked = sorted(similarity, key=lambda token: (similarity[token], token))
        stay, go = ranked[: keep - 1], ranked[keep - 1 :]
        if stay and go:
            gap = min(gap, similarity[go[0]] - similarity[stay[-1]])
        kept |= {centre, *stay}
        centre_of |= dict.fromkeys(go, centre)
    return kept, centre_of, gap


def attend(query: np.ndarray, key: np.ndarray, value: np.ndarray, mask: np.ndarray, scale: float) -> np.ndarray:
    """Softmax over the keys that `mask` [q, k] allows, in float64."""
    logits = np.where(mask, query @ key.T * scale, -np.inf)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True) @ value


def expected_head(
    problem: Problem, route: int, query: np.ndarray, key: np.ndarray, value: np.ndarray, length: int, scale: float
) -> tuple[np.ndarray, float]:
    """Output [S+T, D] of one head with `length` valid text tokens, and the smallest gap as in `choose`."""
    query, key, value = (tensor.astype(np.float64) for tensor in (query, key, value))
    video, rows = math.prod(problem.grid), len(query)
    mask = np.zeros((rows, rows), dtype=bool)
    mask[: video + length, : video + length] = True
    gap, centre_of = math.inf, {}
    if route == SLIDING:
        mask[:video, :video] = sliding_mask(problem)
    elif route == CORESET:
        _, centre_of, gap = choose(problem, query[:video])
        kept_keys = choose(problem, key[:video] if problem.coreset_keys == "key" else query[:video])
        gap = min(gap, kept_keys[2])
        for token in range(video):
            mask[:, token] &= token in kept_keys[0]
    output = np.zeros(query.shape)
    assert mask[: video + length].any(1).all()
    output[: video + length] = attend(query[: video + length], key, value, mask[: video + length], scale)
    for token, centre in centre_of.items():
        output[token] = output[centre]
    return output, gap


def random_problem(rng: random.Random) -> Problem:
    """A problem of a few hundred tokens; most of its tiles and buckets do not divide the grid."""
    while True:
        grid = (rng.randint(1, 7), rng.randint(1, 9), rng.randint(1, 9))
        if math.prod(grid) <= 260:
            break

    def box() -> Triple:
        sizes = []
        for extent in grid:
            remainder_of_one = [size for size in range(1, extent + 1) if extent % size == 1 and size > 1]
            sizes.append(rng.choice([1, extent, extent + 2, rng.randint(1, extent), *remainder_of_one]))
        return sizes[0], sizes[1], sizes[2]

    bucket = box()
    return Problem(
        grid=grid,
        tile=box(),
        window=(rng.choice([1, 3, 3, 5, 9]), rng.choice([1, 3, 3, 5, 9]), rng.choice([1, 3, 3, 5, 9])),
        bucket=bucket,
        keep=rng.choice([1, math.prod(bucket), rng.randint(1, math.prod(bucket)), (math.prod(bucket) + 1) // 2]),
        coreset_keys=rng.choice(["query", "key"]),
        text_tokens=rng.choice([0, 1, 6]),
    )


def corner_problems() -> list[Problem]:
    """A remainder of one along each axis and along all, buckets of one token, windows, tiles and buckets
    beyond the grid, keep 1."""
    problems = []
    for extents in itertools.product((4, 5), repeat=3):
        problems.append(Problem((extents[0], extents[1], extents[2]), (2, 2, 2), (1, 1, 1), (2, 2, 2), 4, "query", 0))
    problems += [
        Problem((5, 5, 5), (2, 2, 2), (3, 3, 3), (2, 2, 2), 1, "key", 3),
        Problem((5, 7, 4), (4, 3, 3), (1, 3, 1), (4, 3, 3), 1, "query", 3),
        Problem((5, 5, 5), (4, 4, 4), (1, 1, 1), (4, 4, 4), 63, "key", 0),
        Problem((3, 5, 7), (2, 3, 4), (9, 9, 9), (1, 1, 1), 1, "key", 2),
        Problem((7, 3, 5), (2, 2, 2), (3, 1, 5), (2, 2, 2), 8, "query", 2),
        Problem((1, 1, 9), (1, 1, 2), (1, 1, 3), (1, 1, 4), 2, "key", 1),
        Problem((2, 9, 7), (2, 4, 3), (1, 3, 3), (2, 3, 2), 6, "query", 5),
        Problem((3, 5, 7), (3, 5, 7), (1, 1, 1), (3, 5, 7), 50, "key", 0),
        Problem((1, 3, 5), (2, 4, 2), (1, 1, 1), (2, 3, 2), 6, "key", 2),
        Problem((2, 2, 3), (9, 9, 9), (3, 3, 3), (4, 4, 4), 9, "query", 0),
        Problem((1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1), 1, "query", 1),
    ]
    return problems


@dataclass(frozen=True)
class Inputs:
    """Inputs of a problem and the outputs that they should give.

    Attributes:
        query: Query, float64 [B, S+T, N, D], of numbers that the tested dtype can hold. Rows of padded text are NaN.
        key: Key, of the same shape and kind as the query.
        value: Value, of the same shape and kind as the query.
        routes: Branch of every head, int32 [B, N].
        lengths: Valid text tokens of each sample.
        scale: Factor of the logits.
        expected: Expected output, float64 [B, S+T, N, D].
    """

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    routes: np.ndarray
    lengths: list[int]
    scale: float
    expected: np.ndarray


def random_inputs(
    problem: Problem, seed: int, rounded: Callable[[np.ndarray], np.ndarray], batch: int = 2, head_dim: int = 8
) -> Inputs:
    """Normal inputs, two heads for each branch, in another order in each sample; one full head has an unknown id.

    Inputs whose coreset depends on the rounding of a similarity to float32 are drawn again.

    Args:
        problem: The problem.
        seed: Seed of all numbers.
        rounded: Rounds a float64 array to the tested dtype.
        batch: B.
        head_dim: D.
    """
    rng = np.random.default_rng(seed)
    video = math.prod(problem.grid)
    shape = (batch, video + problem.text_tokens, 6, head_dim)
    lengths = [int(rng.integers(0, problem.text_tokens + 1)) for _ in range(batch)]
    routes = np.stack([rng.permutation([0, 1, 2, 9, 1, 2]) for _ in range(batch)]).astype(np.int32)
    for _ in range(100):
        query, key, value = (rounded(rng.normal(size=shape)) for _ in range(3))
        expected, gap = np.zeros(shape), math.inf
        for sample, head in itertools.product(range(batch), range(6)):
            one = (tensor[sample, :, head] for tensor in (query, key, value))
            expected[sample, :, head], own = expected_head(
                problem, int(routes[sample, head]), *one, lengths[sample], SCALE
            )
            gap = min(gap, own)
        if gap > 1e-5:
            break
    else:
        raise AssertionError(f"{problem}: every draw had a near tie")
    for sample, length in enumerate(lengths):
        for tensor in (query, key, value):
            tensor[sample, video + length :] = np.nan
    return Inputs(query, key, value, routes, lengths, SCALE, expected)
