# SPDX-License-Identifier: Apache-2.0
"""Polygraphy on our files: its own command for ONNX, `polygraphy_tool` for engines, where it needs our plugin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

POLYGRAPHY = ("-c", "import sys; from polygraphy.tools import main; sys.exit(main())")
WITH_PLUGIN = ("-m", "vorta_trt.engines.polygraphy_tool")
SHAPES = ("hidden_states:[{},72,32]", "routes:[{},2]")
PROFILE = tuple(
    word
    for kind, batch in (("min", 1), ("opt", 1), ("max", 2))
    for word in (f"--trt-{kind}-shapes", *(shape.format(batch) for shape in SHAPES))
)


def run(command: tuple[str, ...], *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "POLYGRAPHY_USE_TENSORRT_RTX": "1"},
    )


def test_polygraphy_lists_the_model(make_model: Any, tmp_path: Path) -> None:
    result = run(POLYGRAPHY, "inspect", "model", make_model(tmp_path / "m.onnx"), "--show", "layers")
    assert result.returncode == 0, result.stderr
    assert "blocks.0.attn1/RoutedAttention" in result.stdout


def test_polygraphy_builds_an_engine_with_the_plugin(make_model: Any, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m.onnx", function_body=False)  # so that only the plugin can do it
    result = run(WITH_PLUGIN, "convert", model, "-o", tmp_path / "m.plan", *PROFILE)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "m.plan").stat().st_size > 0


def test_polygraphy_alone_has_no_plugin(make_model: Any, tmp_path: Path) -> None:
    """Why `polygraphy_tool` exists; if this fails, Polygraphy has learned to register plugins, and it may go."""
    from vorta_trt.plugins import library_path

    model = make_model(tmp_path / "m.onnx", function_body=False)
    result = run(POLYGRAPHY, "convert", model, "-o", tmp_path / "m.plan", "--plugins", library_path(), *PROFILE)
    assert result.returncode != 0
    assert "Plugin not found" in result.stdout + result.stderr
