# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the model's tests: seeded generators, a small Wan pipeline folder and a router for it."""

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
    """Folders on disk; nothing writes to them."""

    checkpoint: Path
    router: Path
    geometry: AttentionGeometry


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    from vorta_trt.model.random_checkpoint import make_router, make_wan_checkpoint

    root = tmp_path_factory.mktemp("pipeline with spaces")
    geometry = AttentionGeometry.for_video(9, 64, 96)  # grid (3, 4, 6)
    sizes = {"layers": LAYERS, "heads": HEADS, "head_dim": HEAD_DIM}
    make_wan_checkpoint(root / "wan", ffn_dim=64, text_dim=TEXT_DIM, channels=4, freq_dim=32, seed=1, **sizes)
    make_router(root / "router", geometry, seed=2, **sizes)
    return Pipeline(root / "wan", root / "router", geometry)
