# SPDX-License-Identifier: Apache-2.0
"""An empty text where a path belongs, as of an unset variable of a shell: it is not the current folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from vorta_trt.cli import app

EMPTY = (
    ["generate", "", "--prompt", "x", "-o", "x.mp4"],
    ["generate", "model.onnx", "--prompt", "x", "-o", ""],
    ["generate", "model.onnx", "--prompt", "x", "--checkpoint", "", "-o", "x.mp4"],
    ["export", "checkpoint", "--router", "", "-o", "x.onnx"],
    ["export", "checkpoint", "--lora", "", "-o", "x.onnx"],
    ["build", "checkpoint", "--size", "", "-o", "x.bundle"],
    ["inspect", ""],
    ["serve", ""],
)


@pytest.mark.parametrize("arguments", EMPTY, ids=" ".join)
def test_it_is_a_usage_error(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and "is empty; give a value, or leave it out" in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())
