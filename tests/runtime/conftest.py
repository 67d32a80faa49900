# SPDX-License-Identifier: Apache-2.0
"""A tiny Wan and a tiny HunyuanVideo with routers, and what is made of them; each is made once, when first asked for.

Imports wait for the fixtures, so that the tests of a GPU machine need no more packages than they use.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from vorta_trt.model import AttentionGeometry

SIZE = (45, 96, 96)  # token grid (12, 6, 6)
MODEL = {"layers": 2, "heads": 3, "head_dim": 32}


def silent(what: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Made:
    """A checkpoint and its router, in a folder with a space in its name."""

    folder: Path
    geometry: AttentionGeometry

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def router(self) -> Path:
        return self.folder / "router"

    def export(self, precision: str, attention_precision: str = "same") -> Path:
        from vorta_trt.runtime.from_checkpoint import Source, export_checkpoint

        source = Source(self.checkpoint, self.router, precision=precision, attention_precision=attention_precision)
        return export_checkpoint(source, self.folder / f"{precision} {attention_precision}.onnx", silent)


@pytest.fixture(scope="session")
def wan(tmp_path_factory: pytest.TempPathFactory) -> Made:
    from vorta_trt.model import AttentionGeometry
    from vorta_trt.model.families.wan.random import make_checkpoint as make_wan_checkpoint
    from vorta_trt.model.random_checkpoint import make_router

    made = Made(tmp_path_factory.mktemp("a wan"), AttentionGeometry.for_video(*SIZE, "wan"))
    make_wan_checkpoint(made.checkpoint, **MODEL, ffn_dim=160, text_dim=48)
    make_router(made.router, made.geometry, **MODEL)
    return made


@pytest.fixture(scope="session")
def hunyuan_video(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """2 dual-stream and 2 single-stream blocks; the same folders and methods as of `wan`."""
    from vorta_trt.model import AttentionGeometry
    from vorta_trt.model.families.hunyuan_video.random import make_checkpoint as make_hunyuan_video_checkpoint
    from vorta_trt.model.random_checkpoint import make_router

    made = Made(tmp_path_factory.mktemp("a hunyuan video"), AttentionGeometry.for_video(*SIZE, "hunyuan_video"))
    sizes = {"layers": 2, "single_layers": 2, "heads": 3, "head_dim": 32}
    make_hunyuan_video_checkpoint(made.checkpoint, text_dim=48, pooled_dim=24, **sizes)
    make_router(made.router, made.geometry, "hunyuan_video", **sizes)
    return made


@pytest.fixture(scope="session")
def fp32(wan: Made) -> Path:
    return wan.export("fp32")


@pytest.fixture(scope="session")
def fp16(wan: Made) -> Path:
    return wan.export("fp16")


@pytest.fixture(scope="session")
def bf16(wan: Made) -> Path:
    return wan.export("bf16")


@pytest.fixture(scope="session")
def bundle(wan: Made, fp16: Path) -> Path:
    """An fp16 bundle of TensorRT-RTX with its ONNX file; batch 1 to 2."""
    from vorta_trt.runtime.from_checkpoint import build_onnx

    return build_onnx(fp16, wan.folder / "with onnx.bundle", silent, include_onnx=True).path


@pytest.fixture
def seed() -> int:
    """A fresh seed, printed; pytest shows it if the test fails."""
    import secrets

    value = secrets.randbits(31)
    print(f"seed {value}")
    return value
