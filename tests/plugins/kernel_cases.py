# SPDX-License-Identifier: Apache-2.0
"""The problems that the GPU tests run. Minimal, ragged and border cases are part of the main list."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from .kernel_call import COMPACT_HEAD_DIMS, LEVELS
from .kernel_oracle import CORESET, FULL, SLIDING, Case

HEAD_DIMS = (8, 64, 72, 80, 96, 128, 192, 256)
FAST_HEAD_DIMS = (64, 80, 128, 256)
DTYPES = ("float16", "bfloat16")
LAYOUTS = ("fused", "heads_first", "padded_rows", "shared_keys", "shared_samples", "shared_tokens")

#: Every branch in both samples at different heads; 7 and -1 are no branch and mean full.
MIXED = ((FULL, CORESET, SLIDING, 7, SLIDING, CORESET), (CORESET, SLIDING, FULL, CORESET, -1, SLIDING))
ONE_EACH = ((FULL, CORESET, SLIDING),)

#: The geometry of the authors' reference cases: tiles far smaller than a block of queries.
TEXT = Case("text", (10, 6, 6), (2, 3, 2), (3, 1, 3), (2, 3, 2), 6, MIXED, (5, 8), 8)
#: Tiles of 288 tokens take several query blocks, the last one partly filled.
TILES = Case("tiles", (4, 18, 32), (2, 9, 16), (1, 1, 1), (2, 3, 2), 6, MIXED, coreset_keys="key")
#: Tiles and buckets as odd as the grid; more text than video.
ODD = Case("odd", (3, 5, 7), (1, 5, 1), (3, 3, 5), (3, 1, 7), 2, MIXED, (140, 1), 141, "key")
#: The last tile and bucket along an axis are shorter, by much and by little, along one axis and all.
RAGGED = Case("ragged", (7, 10, 11), (3, 4, 4), (1, 3, 1), (2, 3, 2), 6, MIXED, (5, 8), 8)
#: Several blocks of queries and keys in a tile; buckets of 1 to 24 tokens, of which the smallest keep one.
RAGGED_TILES = Case("ragged-tiles", (5, 19, 33), (2, 9, 16), (3, 1, 1), (3, 2, 4), 5, MIXED, coreset_keys="key")
RAGGED_CASES = (
    RAGGED,
    RAGGED_TILES,
    replace(RAGGED, name="ragged-frames", grid=(7, 8, 12), tile=(4, 4, 4), window=(1, 1, 3)),
    replace(RAGGED, name="ragged-width", grid=(6, 8, 13), tile=(2, 4, 6), window=(3, 1, 1), coreset_keys="key"),
    replace(RAGGED, name="tile-larger-than-grid", tile=(9, 4, 20), window=(1, 1, 1), bucket=(1, 4, 16), keep=9),
    replace(
        RAGGED, name="last-tile-of-one", grid=(5, 9, 9), tile=(2, 4, 8), window=(1, 1, 1), bucket=(2, 2, 2), keep=1
    ),
    replace(RAGGED, name="five-tiles", grid=(9, 13, 18), tile=(2, 3, 4), window=(3, 3, 3), bucket=(4, 4, 4), keep=31),
)
MINIMAL = Case("minimal", (1, 1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1), 1, MIXED)
MINIMAL_TEXT = replace(MINIMAL, name="minimal-text", lengths=(0, 3), text=3)
WAN = Case("wan", (20, 45, 80), (5, 9, 8), (3, 3, 3), (2, 3, 2), 6, ONE_EACH, head_dim=128)
WAN_SMALL = Case("wan-1.3b", (21, 30, 52), (7, 5, 13), (3, 3, 3), (3, 2, 2), 6, ONE_EACH, head_dim=128)
#: Sizes of today's models that the published tiles do not divide.
WAN_RAGGED = replace(WAN, name="wan-121x704x1280", grid=(31, 44, 80), tile=(6, 9, 8))
SMALL_RAGGED = replace(WAN, name="wan-81x480x848", grid=(21, 30, 53), tile=(5, 9, 8))
HUNYUAN_RAGGED = Case(
    "hunyuan-121x720x1280", (31, 45, 80), (6, 9, 8), (3, 3, 3), (2, 3, 2), 6, ONE_EACH, (200,), 256, "key", head_dim=128
)  # fmt: skip
#: Windows of which three have no box that fills a block of 144 keys: the Hopper kernels cut them in two, along either
#: axis, and text follows.
TWO_PARTS = Case(
    "windows-in-two-parts", (7, 42, 45), (3, 37, 37), (1, 1, 1), (2, 3, 2), 6, ONE_EACH, (37,), 150, head_dim=128
)  # fmt: skip
HUNYUAN = Case(
    "hunyuan", (30, 45, 80), (6, 9, 8), (3, 3, 3), (2, 3, 2), 6, ONE_EACH, (200,), 256, "key", head_dim=128
)  # fmt: skip

EDGES = (
    replace(TEXT, name="no-valid-text", lengths=(0, 0)),
    replace(TEXT, name="all-text-valid", lengths=(8, 8)),
    replace(TEXT, name="lengths-out-of-range", lengths=(8, 0)),  # the test passes 13 and -2: clamped
    replace(TEXT, name="keep-centre-only", keep=1),
    replace(TEXT, name="keep-all", keep=12),
    replace(TEXT, name="window-larger-than-grid", window=(9, 9, 9)),
    replace(TEXT, name="window-of-one", window=(1, 1, 1)),
    replace(TEXT, name="one-tile", tile=(10, 6, 6)),
    replace(TEXT, name="tile-of-one-token", tile=(1, 1, 1), window=(5, 3, 3)),
    replace(TEXT, name="bucket-of-one-token", bucket=(1, 1, 1), keep=1),
    replace(TILES, name="bucket-of-64-tokens", grid=(4, 20, 32), tile=(2, 5, 16), bucket=(4, 2, 8), keep=31),
    replace(TILES, name="two-tokens-past-a-block", grid=(2, 5, 13), tile=(2, 5, 13), bucket=(1, 1, 13), keep=13),
    replace(TEXT, name="one-head", routes=((CORESET,), (SLIDING,))),
    replace(TEXT, name="batch-of-one", routes=MIXED[:1], lengths=(7,)),
)

#: Tiles along an axis and the window: tiles at the borders share windows in every way there is.
AXES = ((1, 1), (2, 1), (3, 1), (5, 1), (2, 3), (3, 3), (4, 3), (5, 3), (6, 3), (4, 5), (6, 5), (7, 5))
GROUP_TILES = ((2, 3, 5), (1, 7, 3), (3, 2, 8), (1, 1, 11))


def tile_groups(index: int) -> Case:
    """A case of number `index`; over all cases, each entry of AXES comes along each axis once."""
    axes = [AXES[(index + shift) % len(AXES)] for shift in (0, 4, 8)]
    tile = GROUP_TILES[index % len(GROUP_TILES)]
    frames, height, width = (tiles * extent for (tiles, _), extent in zip(axes, tile, strict=True))
    return Case(
        f"groups-{index}", (frames, height, width), tile, (axes[0][1], axes[1][1], axes[2][1]), tile,
        math.prod(tile) // 3, ((SLIDING, CORESET), (FULL, SLIDING)), *(((5, 2), 5) if index % 2 else ()),
        head_dim=COMPACT_HEAD_DIMS[index % 2], dtype=DTYPES[index // 2 % 2],
    )  # fmt: skip


#: One tile is the window. Keys are taken 144 at a time: the plane falls one short, is a prime row or column longer than
#: a block, fits by halves, badly, exactly.
WINDOWS = ((1, 13, 11), (2, 1, 149), (1, 149, 1), (3, 7, 7), (1, 5, 29), (2, 12, 12), (4, 6, 23))
#: Valid text around multiples of a block of keys.
TEXT_LENGTHS = ((0, 300), (144, 145), (143, 288), (1, 299))
MANY = Case("many", (2, 18, 32), (2, 9, 16), (1, 1, 1), (2, 3, 2), 6, (), (20,), 20)
RANDOM_ROUTES = tuple(tuple(random.Random(i).choices((FULL, CORESET, SLIDING), k=40)) for i in range(2))
#: Several blocks of keys for every branch, text in a block of its own.
BLOCKS = Case(
    "blocks", (8, 18, 16), (2, 9, 8), (3, 1, 1), (2, 3, 2), 6, ((FULL, CORESET, SLIDING), (SLIDING, FULL, CORESET)),
    (150, 40), 150,
)  # fmt: skip

#: What decides how kernels cut the work: the head dimensions that have kernels for Hopper.
GROUP_CASES = tuple(tile_groups(i) for i in range(len(AXES)))
WINDOW_CASES = tuple(
    Case(
        f"window-{t}x{h}x{w}", (2 * t, h, 2 * w), (t, h, w), (1, 1, 1), (2, 1, 2), 2,
        ((SLIDING, CORESET), (SLIDING, FULL)), (1, 145), 145, head_dim=d, dtype=DTYPES[(i + d // 64) % 2],
    )
    for i, (t, h, w) in enumerate(WINDOWS)
    for d in COMPACT_HEAD_DIMS
)  # fmt: skip
TEXT_CASES = tuple(
    replace(TEXT, name=f"text-{n}-{m}", lengths=(n, m), text=300, head_dim=d)
    for n, m in TEXT_LENGTHS
    for d in COMPACT_HEAD_DIMS
)
MANY_CASES = (
    *(replace(MANY, name=f"all-{r}", routes=((r,) * 24,), head_dim=d) for r in range(3) for d in COMPACT_HEAD_DIMS),
    *(replace(MANY, routes=RANDOM_ROUTES, lengths=(20, 3), head_dim=d) for d in COMPACT_HEAD_DIMS),
)
PROFILE_CASES = tuple(
    replace(BLOCKS, name=f"logits-{profile}", profile=profile, head_dim=d, dtype=t)
    for profile in LEVELS
    for d in COMPACT_HEAD_DIMS
    for t in DTYPES
)
EQUAL_CASES = tuple(
    replace(case, name=f"equal-logits-{case.name}", magnitude=0.0, head_dim=d, dtype=t)
    for case in (TEXT, TILES)
    for d in COMPACT_HEAD_DIMS
    for t in DTYPES
)
BLOCK_CASES = (*GROUP_CASES, *WINDOW_CASES, *TEXT_CASES, *MANY_CASES, *PROFILE_CASES, *EQUAL_CASES)
#: Run a second time with the generic kernels where a GPU has others for the head dimension.
GENERIC_CASES = (
    *(
        replace(case, head_dim=d, dtype=t)
        for case in (TEXT, TILES, ODD, *RAGGED_CASES)
        for d in COMPACT_HEAD_DIMS
        for t in DTYPES
    ),
    *(replace(TEXT, name=n, layout=n, head_dim=d) for n in LAYOUTS for d in COMPACT_HEAD_DIMS),
    *GROUP_CASES[::3],
    *WINDOW_CASES[::5],
    *TEXT_CASES[::3],
    *PROFILE_CASES[::5],
    replace(WAN, routes=((CORESET, SLIDING),)),
    replace(SMALL_RAGGED, routes=((CORESET, SLIDING),)),
)

SMALL_CASES = (
    *(replace(TEXT, head_dim=d, dtype=t) for d in HEAD_DIMS for t in DTYPES),
    *(
        replace(case, head_dim=d, dtype=t)
        for case in (TILES, ODD, *RAGGED_CASES)
        for d in FAST_HEAD_DIMS
        for t in DTYPES
    ),
    *(
        replace(case, head_dim=d, dtype=t)
        for case in (MINIMAL, MINIMAL_TEXT)
        for d in (8, *FAST_HEAD_DIMS)
        for t in DTYPES
    ),
    *(replace(TEXT, name=n, layout=n, head_dim=d) for n in LAYOUTS for d in FAST_HEAD_DIMS),
    *(
        replace(TILES, name=f"logits-x{m}", magnitude=m, head_dim=d, dtype=t)
        for m in (5, 50)
        for d in FAST_HEAD_DIMS
        for t in DTYPES
    ),
    *(replace(case, head_dim=d) for case in EDGES for d in (64, 128)),
)
LARGE_CASES = (
    WAN,
    replace(WAN, dtype="float16"),
    replace(WAN, head_dim=64),
    replace(WAN, head_dim=256, routes=((CORESET, SLIDING),)),
    WAN_SMALL,
    replace(WAN_SMALL, layout="fused", name="wan-1.3b-fused", routes=ONE_EACH * 2),
    HUNYUAN,
    WAN_RAGGED,
    SMALL_RAGGED,
    replace(SMALL_RAGGED, dtype="float16", head_dim=64),
    HUNYUAN_RAGGED,
    TWO_PARTS,
    replace(TWO_PARTS, dtype="float16", head_dim=64),
)
