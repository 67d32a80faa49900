# SPDX-License-Identifier: Apache-2.0
"""Whole transformers on 1 to 4 ranks against one process, over gloo, in float32.

They are equal but for the rounding of sums: a product of fewer rows may add up in another order. A coreset changes
where two similarities are that close, so the seed is one with which they are not: noise of 1e-6 on its inputs changes
no sample by more than a few times as much.
"""

from __future__ import annotations

from typing import Any

import pytest

from vorta_trt.model import AttentionGeometry, CheckpointReader
from vorta_trt.model.random_checkpoint import make_checkpoint, make_router

from ...kept import Kept
from ...ranks import RANKS, Pool
from ...tiny import ROUTER_SIZES

SEED = 5
ROUNDING = 2e-6  # relative, of a few layers in float32
FP8_ROUNDING = 5e-3  # a few numbers that round to the neighbouring one of e4m3
SIZES = {"layers": 2, "heads": 12, "head_dim": 8, "text_dim": 24, "channels": 4}
HUNYUAN_VIDEO = {**SIZES, "single_layers": 1, "pooled_dim": 16, "refiner_layers": 1}
# Family, and behind a space which of its models; video sizes with a token grid (3, 3, 5), ragged for 2 and 4 ranks.
MODELS: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "wan": ({**SIZES, "ffn_dim": 64, "freq_dim": 32}, (9, 48, 80)),
    "wan ti2v": ({**SIZES, "ffn_dim": 64, "freq_dim": 32, "channels": 48}, (9, 96, 160)),
    "hunyuan_video": (HUNYUAN_VIDEO, (9, 48, 80)),
    "hunyuan_video token_replace": ({**HUNYUAN_VIDEO, "image": "token_replace"}, (9, 48, 80)),
    "hunyuan_video_15": (
        {**SIZES, "glyph_dim": 16, "image_dim": 8, "refiner_layers": 1, "target_size": 80},
        (9, 48, 80),
    ),
}


@pytest.fixture(scope="module")
def folders(kept: Kept) -> dict[str, dict[str, str]]:
    """Checkpoint and router of every model, as the cases take them."""
    return {name: _folders(kept, name, *what) for name, what in MODELS.items()}


def _folders(kept: Kept, name: str, sizes: dict[str, Any], video: tuple[int, int, int]) -> dict[str, str]:
    family = name.partition(" ")[0]
    root = kept.folder("model") / "twelve heads" / name
    checkpoint = kept.make(root / "checkpoint", lambda path: make_checkpoint(path, family, **sizes, seed=1))
    with CheckpointReader(checkpoint) as reader:
        geometry = AttentionGeometry.for_video(*video, family, config=reader.config)
    options = {size: sizes[size] for size in ROUTER_SIZES if size in sizes}
    router = kept.make(
        root / "router", lambda path: make_router(path, geometry, family, video=video, seed=2, **options)
    )
    return {"folder": str(checkpoint), "router": str(router)}


@pytest.mark.parametrize("ranks", range(1, RANKS + 1))
@pytest.mark.parametrize("name", MODELS)
def test_samples_are_those_of_one_process(
    pool: Pool, folders: dict[str, dict[str, str]], ranks: int, name: str
) -> None:
    for placement, block_ops in (("balanced", "native"), ("in_order", "plugin")):
        case = {"options": {}, "placement": placement, "block_ops": block_ops, "seed": SEED}
        of_rank_0, *others = pool("steps", ranks, **folders[name], **case)
        print(placement, block_ops, of_rank_0)
        assert max(of_rank_0) <= ROUNDING
        assert all(found == [0] * len(found) for found in others)


@pytest.mark.parametrize("block_ops", ["native", "plugin"])
@pytest.mark.parametrize("name", ["wan", "hunyuan_video"])
def test_fp8_linears(pool: Pool, folders: dict[str, dict[str, str]], name: str, block_ops: str) -> None:
    case = {"options": {"linear_precision": "fp8"}, "placement": "balanced", "block_ops": block_ops, "seed": SEED}
    of_rank_0, *others = pool("steps", 3, **folders[name], **case)
    print(of_rank_0)
    assert max(of_rank_0) <= FP8_ROUNDING
    assert all(found == [0] * len(found) for found in others)
