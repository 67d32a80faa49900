# SPDX-License-Identifier: Apache-2.0
"""The tiny models of all tests, loaded in any precision, and the files that are exported from their float32 weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vorta_trt.model import RoutedTransformer

from ..tiny import Tiny

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

Load = Callable[..., RoutedTransformer]


def _loader(tiny: Tiny) -> Load:
    def load(precision: str = "fp32", **options: object) -> RoutedTransformer:
        arguments = {"router": tiny.router, "geometry": tiny.geometry, "dtype": DTYPES[precision], **options}
        return RoutedTransformer.from_pretrained(tiny.checkpoint, **arguments)  # type: ignore[arg-type]

    return load


@pytest.fixture(scope="session")
def checkpoint(tiny_wan: Tiny) -> Path:
    return tiny_wan.checkpoint


@pytest.fixture(scope="session")
def load(tiny_wan: Tiny) -> Load:
    """Loads the tiny Wan: `load("bf16", materialize=False)`; `router=None` leaves the router out."""
    return _loader(tiny_wan)


@pytest.fixture(scope="session")
def exported(tiny_wan: Tiny) -> Callable[..., Path]:
    return tiny_wan.export


@pytest.fixture(scope="session")
def hunyuan_video(tiny_hunyuan_video: Tiny) -> Load:
    """Loads the tiny HunyuanVideo, like `load`."""
    return _loader(tiny_hunyuan_video)


@pytest.fixture(scope="session")
def hunyuan_video_file(tiny_hunyuan_video: Tiny) -> Callable[..., Path]:
    return tiny_hunyuan_video.export
