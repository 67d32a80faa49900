# SPDX-License-Identifier: Apache-2.0
"""The plugin library in the registries of TensorRT-RTX and of the lean runtime, on a machine without a GPU."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vorta_trt.plugins import library_path
from vorta_trt.plugins.operator_schema import OPERATORS

PROBE = Path(__file__).parent / "registry_probe.py"
FLAVOURS = ["tensorrt_rtx", "tensorrt_lean_bindings"]


def probe(module: str, path: str, folder: Path) -> dict[str, Any]:
    """Outcome of loading ``path`` in a new process whose working directory is ``folder``."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    command = [sys.executable, str(PROBE), module, path]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    outcome: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    outcome["stderr"] = result.stderr
    return outcome


@pytest.mark.parametrize("module", FLAVOURS)
def test_plugin_loads_and_is_created_from_fields(module: str, tmp_path: Path) -> None:
    outcome = probe(module, str(library_path()), tmp_path)
    assert outcome["loaded"]
    assert outcome["creator"]
    assert outcome["plugin"] == ["vorta", "RoutedAttention", "1"]
    assert outcome["fields"] == [
        "grid",
        "tile",
        "window",
        "bucket",
        "keep",
        "coreset_keys",
        "text_tokens",
        "scale",
        "attention_precision",
    ]
    assert outcome["creators"] == sorted(OPERATORS)
    assert not outcome["after_deregister"]


@pytest.mark.parametrize("module", FLAVOURS)
def test_bad_fields_are_refused_with_a_message(module: str, tmp_path: Path) -> None:
    outcome = probe(module, str(library_path()), tmp_path)
    assert not outcome["bad"]
    message = "[vorta::RoutedAttention] createPlugin: layer layer: window (2, 1, 1): every entry must be odd"
    heard = outcome["messages"] if outcome["has_builder"] else outcome["stderr"].splitlines()
    assert [line for line in heard if line.startswith(message)]


@pytest.mark.parametrize("module", FLAVOURS)
def test_path_with_spaces(module: str, tmp_path: Path) -> None:
    folder = tmp_path / "a folder with spaces"
    folder.mkdir()
    shutil.copy(library_path(), folder)
    assert probe(module, str(folder / library_path().name), tmp_path)["creator"]


@pytest.mark.parametrize("module", FLAVOURS)
def test_bare_file_name_registers_nothing(module: str) -> None:
    """Known issue of TensorRT: a name without a slash is looked for on the loader's path, not in the working directory.

    Nothing is raised, so our code hands over absolute paths only.
    """
    outcome = probe(module, library_path().name, library_path().parent)
    assert not outcome["loaded"]
    assert not outcome["creator"]


@pytest.mark.parametrize("module", FLAVOURS)
def test_second_load_gives_no_handle(module: str, tmp_path: Path) -> None:
    """Known behaviour of TensorRT: None from load_library is no proof of failure; ask for the creator first."""
    assert not probe(module, str(library_path()), tmp_path)["loaded_again"]
