# SPDX-License-Identifier: Apache-2.0
"""`folders`: small models with twelve heads, which 1, 2, 3 and 4 ranks divide, and ragged shards of their tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vorta_trt.model import AttentionGeometry, CheckpointReader
from vorta_trt.model.random_checkpoint import make_checkpoint, make_router

from ...kept import Kept
from ...tiny import ROUTER_SIZES

TEXT = 13  # padded text tokens, where their number is free
SIZES = {"layers": 2, "heads": 12, "head_dim": 8, "text_dim": 24, "channels": 4}
HUNYUAN_VIDEO = {**SIZES, "single_layers": 1, "pooled_dim": 16, "refiner_layers": 1}
# Keys: the family, then after a space one of its models. The sizes have a grid (3, 3, 5), ragged for 2 and 4 ranks.
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


@pytest.fixture(scope="session")
def folders(kept: Kept) -> dict[str, dict[str, str]]:
    """Checkpoint, router and geometry of every model, as the cases take them."""
    return {name: _folders(kept, name, *what) for name, what in MODELS.items()}


def _folders(kept: Kept, name: str, sizes: dict[str, Any], video: tuple[int, int, int]) -> dict[str, str]:
    family = name.partition(" ")[0]
    root = kept.folder("model") / "twelve heads" / name
    checkpoint = kept.make(root / "checkpoint", lambda path: make_checkpoint(path, family, **sizes, seed=1))
    with CheckpointReader(checkpoint) as reader:
        text = {"text_tokens": TEXT} if family == "hunyuan_video" else {}
        geometry = AttentionGeometry.for_video(*video, family, config=reader.config, **text)
    options = {size: sizes[size] for size in ROUTER_SIZES if size in sizes}
    router = kept.make(
        root / "router", lambda path: make_router(path, geometry, family, video=video, seed=2, **options)
    )
    return {"folder": str(checkpoint), "router": str(router), "geometry": json.dumps(geometry.to_dict())}
