# SPDX-License-Identifier: Apache-2.0
"""A VAE whose ranks decode some of the tiles each, against one process, bit for bit over gloo."""

from __future__ import annotations

from typing import Any

import pytest

from ...kept import Kept
from ...ranks import Pool
from ...tiny import CHANNELS, make_tiny

SMALL = {"tile_sample_min_height": 32, "tile_sample_min_width": 32}
IN_TIME = {"tile_sample_min_num_frames": 8, "tile_sample_stride_num_frames": 4}
STRIDES = {"tile_sample_stride_height": 24, "tile_sample_stride_width": 24}
LATENTS = {"tile_latent_min_height": 4, "tile_latent_min_width": 4, "tile_overlap_factor": 0.25}


@pytest.mark.parametrize(
    ("name", "tiling", "side"),
    [("hunyuan_video", {**SMALL, **STRIDES, **IN_TIME}, 6), ("hunyuan_video_15", {**SMALL, **LATENTS}, 7)],
)
def test_tiles_of_ranks_are_those_of_one(pool: Pool, kept: Kept, name: str, tiling: dict[str, Any], side: int) -> None:
    folder = str(make_tiny(kept, name).checkpoint)
    case = {"folder": folder, "tiling": tiling, "latents": (1, CHANNELS, 5, side, side + 1), "seed": 2}
    results = pool("decoded_tiles", 3, **case)
    tiles = results[0][1]
    assert tiles >= 4, "too few to share"
    assert [same for same, _, _ in results] == [True] * 3
    assert [own for _, _, own in results] == [len(range(rank, tiles, 3)) for rank in range(3)]
