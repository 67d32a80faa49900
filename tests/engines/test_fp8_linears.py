# SPDX-License-Identifier: Apache-2.0
"""Bundles of models whose linear layers have fp8 products: built by TensorRT-RTX without a GPU, or refused before."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from vorta_trt.cli import app
from vorta_trt.engines.errors import BuildError
from vorta_trt.engines.flavours import get_flavour
from vorta_trt.engines.inspect import inspect_bundle
from vorta_trt.model.random_checkpoint import make_checkpoint
from vorta_trt.model.video_size import VideoSize
from vorta_trt.runtime.from_checkpoint import Source, build_checkpoint

pytestmark = pytest.mark.skipif(not get_flavour("rtx").can_build(), reason="tensorrt_rtx is not installed")

SIZES = {"layers": 2, "heads": 2, "head_dim": 64, "text_dim": 32, "channels": 4, "ffn_dim": 64, "freq_dim": 32}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    checkpoint = make_checkpoint(tmp_path_factory.mktemp("fp8") / "model", "wan", **SIZES)
    return Source(checkpoint, size=VideoSize(9, 64, 96), linear_precision="fp8", linear_keep=("default", "*.ffn.*"))


def test_a_bundle_is_built_and_shows_its_layers(source: Source, tmp_path: Path) -> None:
    bundle = build_checkpoint(source, tmp_path / "fp8.bundle", lambda *_: None, compute_capabilities=["8.9"])
    operators = bundle.manifest.block_operators
    assert operators is not None
    metadata = bundle.manifest.model_metadata("manifest")
    assert metadata.linear_precision == "fp8" and len(metadata.fp8_layers) == 12
    shown = "\n".join(inspect_bundle(bundle.path).lines())
    assert "fp8 products in 12 layers: blocks.*.attn1.to_q 2," in shown
    assert "(--linear-keep): *embed* *norm* proj_out" in shown and "*.ffn.*" in shown


def test_gpus_without_e4m3_are_refused_before_the_export(source: Source, tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(BuildError, match="needs GPUs of compute capability 8.9 or newer, .* 8.0") as why:
        build_checkpoint(source, tmp_path / "fp8.bundle", lambda what, *_: told.append(what))
    assert "--compute-capability 8.9" in str(why.value)
    assert told == ["loading the checkpoint"] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--linear-keep", "blocks.0.*"], "says which layers have no fp8 products"),
        (["--linear-precision", "fp8", "--linear-keep", "nothing.*"], "matches no linear layer of this model"),
    ],
)
def test_refused_options(source: Source, tmp_path: Path, arguments: list[str], message: str) -> None:
    output = ["-o", str(tmp_path / "model.onnx")]
    result = CliRunner().invoke(app, ["export", str(source.checkpoint), "--size", "9x64x96", *output, *arguments])
    assert result.exit_code in (1, 2) and message in " ".join(result.output.split()).replace("│ ", "")
    assert not list(tmp_path.iterdir())
