# SPDX-License-Identifier: Apache-2.0
"""Could queries, keys and values be quantised before their exchange, with the same bits as when quantised afterwards?

    python studies/exchange_in_eight_bits.py     # arithmetic; needs no GPU

The fp8 kernels read one scale for each 32 keys that follow each other in the order of a head's route: raster (full),
tile by tile (sliding), or those that a coreset keeps, a fixed number of each bucket. The study counts how many of these
groups are cut by the shards of P ranks. Where the number is 0, a rank knows every scale of its tokens by itself, except
for the means and levels of the channels, which come from a sample of all tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from vorta_trt.model import AttentionGeometry
from vorta_trt.model.parallel.shards import TokenShards

CHUNK = 32  # keys with one scale, plugins/kernels/fp8/chunks.h
MODELS = {
    "Wan 14B": AttentionGeometry((20, 45, 80), (5, 9, 8), (3, 3, 3), (2, 3, 2), 6),
    "HunyuanVideo": AttentionGeometry((30, 45, 80), (6, 9, 8), (3, 3, 3), (2, 3, 2), 6, "key", 256),
}
RANKS = (2, 4, 8)


def boxes(grid: tuple[int, int, int], shape: tuple[int, int, int]) -> Iterator[torch.Tensor]:
    """The tokens [size] of every box of a grid that is cut into boxes, in raster order; the last ones are shorter."""
    tokens = torch.arange(math.prod(grid)).view(grid)
    for frames in tokens.split(shape[0], 0):
        for rows in frames.split(shape[1], 1):
            yield from (box.flatten() for box in rows.split(shape[2], 2))


def cut(groups: list[torch.Tensor], ranks: torch.Tensor) -> tuple[int, int]:
    """How many of some groups of tokens lie on several ranks, and how many there are."""
    return sum(int(ranks[group].unique().numel() > 1) for group in groups), len(groups)


def main() -> None:
    print(f"{'':<14}{'ranks':>6}{'full chunks':>16}{'tiles':>14}{'sliding chunks':>16}{'buckets':>16}   cut, of all")
    for name, geometry in MODELS.items():
        tiles = list(boxes(geometry.grid, geometry.tile))
        groups = {
            "full": list(torch.arange(geometry.video_tokens).split(CHUNK)),
            "tiles": tiles,
            "sliding": [chunk for tile in tiles for chunk in tile.split(CHUNK)],
            "buckets": list(boxes(geometry.grid, geometry.bucket)),
        }
        for ranks in RANKS:
            rows = TokenShards(geometry.video_tokens, ranks).rows
            of_rank = torch.arange(geometry.video_tokens) // rows
            found = [cut(group, of_rank) for group in groups.values()]
            columns = (f"{part} of {whole}" for part, whole in found)
            print(
                f"{name:<14}{ranks:>6}" + "".join(f"{text:>{16 if i != 1 else 14}}" for i, text in enumerate(columns))
            )


if __name__ == "__main__":
    main()
