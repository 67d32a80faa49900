# SPDX-License-Identifier: Apache-2.0
"""Commands take a file of weights for a checkpoint, and an ONNX file for what was exported."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from vorta_trt.cli import app

UNKNOWN = "by the names of its tensors diffusers does not know the model"


def error(*arguments: object, code: int = 1) -> str:
    """What a command that fails says, in one line."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code and "Traceback" not in result.output, result.output
    return " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "FILE", "-o", "model.onnx"),
        ("build", "FILE", "-o", "model.bundle"),
        ("routes", "FILE", "--router", "ROUTER"),
        ("calibrate", "FILE", "--data", "DATA", "-o", "calibration.json"),
        ("compare", "dense", "routed", "--of", "FILE", "--prompt", "a wall", "--no-lpips"),
    ],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.parametrize(
    ("name", "message"),
    [("wan.safetensors", UNKNOWN), ("wan.gguf", "quantised weights (GGUF)"), ("wan.ckpt", "that may run code")],
)
def test_files_of_weights(arguments: tuple[str, ...], name: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / name
    save_file({"conv.weight": torch.ones(2)}, file)
    assert message in error(*(file if argument == "FILE" else argument for argument in arguments))
    assert [path.name for path in tmp_path.iterdir()] == [name]  # nothing is written


def test_a_variant_belongs_to_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    said = error("build", tmp_path / "model.onnx", "--variant", "fp16", "-o", tmp_path / "x.bundle", code=2)
    assert "--variant belongs to checkpoints" in said


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "X", "-o", "model.onnx", "--size", "5x64x96", "--size", "9x64x96"),
        ("routes", "X", "--router", "R", "--size", "5x64x96", "--size=9x64x96"),
        ("verify", "X", "Y", "--size", "5x64x96", "--size", "9x64x96"),
        ("generate", "X", "--size", "5x64x96", "--size", "9x64x96"),
        ("calibrate", "X", "-o", "c.json", "--size", "5x64x96", "--size", "9x64x96"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_option_given_twice_where_one_is_taken(arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert "'--size': is given 2 times, and one is taken; give one" in error(*arguments, code=2)


def test_an_option_that_may_be_repeated(tmp_path: Path) -> None:
    sizes = ("--size", "5x64x96", "--size", "9x64x96")
    assert "does not exist" in error("build", tmp_path / "absent", *sizes, "-o", tmp_path / "x.bundle")
