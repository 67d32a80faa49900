# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the model's tests: seeded generators; small Wan and HunyuanVideo pipeline folders and their routers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vorta_trt.model import AttentionGeometry

LAYERS, HEADS, HEAD_DIM, TEXT_DIM = 3, 4, 24, 32
TEXT_TOKENS = 13  # of HunyuanVideo here, padding included


@pytest.fixture
def seed() -> int:
    """A fresh seed for every run, printed so that a failure can be repeated by returning it here."""
    value = random.SystemRandom().randrange(1 << 31)
    print(f"seed {value}")
    return value


@pytest.fixture
def normal(seed: int) -> Callable[..., Tensor]:
    """normal(*shape, dtype=...): fresh normal numbers."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return draw


@dataclass(frozen=True)
class Pipeline:
    """Folders on disk that no test writes to."""

    checkpoint: Path
    router: Path
    geometry: AttentionGeometry


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    from vorta_trt.model.families.wan.random import make_checkpoint as make_wan_checkpoint
    from vorta_trt.model.random_checkpoint import make_router

    root = tmp_path_factory.mktemp("pipeline with spaces")
    geometry = AttentionGeometry.for_video(9, 64, 96)  # grid (3, 4, 6)
    sizes = {"layers": LAYERS, "heads": HEADS, "head_dim": HEAD_DIM}
    make_wan_checkpoint(root / "wan", ffn_dim=64, text_dim=TEXT_DIM, channels=4, freq_dim=32, seed=1, **sizes)
    make_router(root / "router", geometry, seed=2, **sizes)
    return Pipeline(root / "wan", root / "router", geometry)


@pytest.fixture(scope="session")
def hunyuan_video(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A HunyuanVideo with 2 dual-stream blocks and 1 single-stream block."""
    from vorta_trt.model.families.hunyuan_video.random import make_checkpoint as make_hunyuan_video_checkpoint
    from vorta_trt.model.random_checkpoint import make_router

    root = tmp_path_factory.mktemp("pipeline with spaces")
    geometry = AttentionGeometry.for_video(9, 64, 96, "hunyuan_video", text_tokens=TEXT_TOKENS)  # grid (3, 4, 6)
    sizes = {"layers": 2, "single_layers": 1, "heads": HEADS, "head_dim": 16}
    make_hunyuan_video_checkpoint(root / "hunyuan", text_dim=TEXT_DIM, pooled_dim=20, channels=4, seed=3, **sizes)
    make_router(root / "router", geometry, "hunyuan_video", seed=4, **sizes)
    return Pipeline(root / "hunyuan", root / "router", geometry)
