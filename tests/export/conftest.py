# SPDX-License-Identifier: Apache-2.0
"""Small checkpoints of Wan and HunyuanVideo with routers, made and exported once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from vorta_trt.export import export_onnx
from vorta_trt.model import AttentionGeometry, RoutedTransformer
from vorta_trt.model.families.hunyuan_video.random import make_checkpoint as make_hunyuan_video_checkpoint
from vorta_trt.model.families.wan.random import make_checkpoint as make_wan_checkpoint
from vorta_trt.model.random_checkpoint import make_router

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


# -- HunyuanVideo ------------------------------------------------------------------------------------------------------

TEXT_TOKENS = 9  # padding included
HUNYUAN_VIDEO_GEOMETRY = AttentionGeometry(
    grid=(4, 6, 8), tile=(2, 3, 4), window=(1, 3, 1), bucket=(2, 3, 2), keep=6, coreset_keys="key",
    text_tokens=TEXT_TOKENS,
)  # fmt: skip


@pytest.fixture(scope="session")
def hunyuan_video(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Loads a small HunyuanVideo of 2 dual-stream and 2 single-stream blocks, with a router; like `load`."""
    path = tmp_path_factory.mktemp("checkpoints") / "tiny-hunyuan-video"
    sizes = {"layers": 2, "single_layers": 2, "heads": HEADS, "head_dim": HEAD_DIM}
    make_hunyuan_video_checkpoint(path, text_dim=24, pooled_dim=20, **sizes)
    make_router(path / "router", HUNYUAN_VIDEO_GEOMETRY, "hunyuan_video", **sizes)

    def loaded(precision: str = "fp32", **options: object) -> RoutedTransformer:
        arguments = {
            "router": path / "router", "geometry": HUNYUAN_VIDEO_GEOMETRY, "dtype": DTYPES[precision], **options
        }  # fmt: skip
        return RoutedTransformer.from_pretrained(path, **arguments)

    return loaded


@pytest.fixture(scope="session")
def hunyuan_video_file(hunyuan_video: Load, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The small HunyuanVideo, exported in a precision from its float32 weights."""
    folder = tmp_path_factory.mktemp("exported models")

    @cache
    def path(precision: str) -> Path:
        return export_onnx(hunyuan_video(), folder / f"{precision}.onnx", precision)

    return path
