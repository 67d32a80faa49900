# SPDX-License-Identifier: Apache-2.0
"""A small Wan checkpoint with a router, made and exported once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from vorta_trt.export import export_onnx
from vorta_trt.model import AttentionGeometry, RoutedTransformer
from vorta_trt.model.random_checkpoint import make_router, make_wan_checkpoint

GEOMETRY = AttentionGeometry(grid=(4, 6, 8), tile=(2, 3, 4), window=(1, 3, 1), bucket=(2, 3, 2), keep=6)
LAYERS, HEADS, HEAD_DIM = 3, 4, 16
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

Load = Callable[..., RoutedTransformer]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "tiny-wan"
    make_wan_checkpoint(path, layers=LAYERS, heads=HEADS, head_dim=HEAD_DIM, ffn_dim=96, text_dim=24)
    make_router(path / "router", GEOMETRY, layers=LAYERS, heads=HEADS, head_dim=HEAD_DIM)
    return path


@pytest.fixture(scope="session")
def load(checkpoint: Path) -> Load:
    """Loads the small model: `load("bf16", materialize=False)`; `router=None` leaves the router out."""

    def loaded(precision: str = "fp32", **options: object) -> RoutedTransformer:
        arguments = {"router": checkpoint / "router", "geometry": GEOMETRY, "dtype": DTYPES[precision], **options}
        return RoutedTransformer.from_pretrained(checkpoint, **arguments)

    return loaded


@pytest.fixture(scope="session")
def exported(load: Load, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The small model, exported in a precision from its float32 weights."""
    folder = tmp_path_factory.mktemp("exported models")  # with a space

    @cache
    def path(precision: str) -> Path:
        return export_onnx(load(), folder / f"{precision}.onnx", precision)

    return path
