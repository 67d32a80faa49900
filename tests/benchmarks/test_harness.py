# SPDX-License-Identifier: Apache-2.0
"""What every result says about the machine and the command."""

from __future__ import annotations

import json
import sys
from datetime import date
from pathlib import Path

import pytest

from vorta_trt.benchmarks import harness


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (
            ["/opt/bin/vorta-trt", "bench", "attention", "-o", "/tmp/a b.json"],
            "vorta-trt bench attention -o 'a b.json'",
        ),
        (["/opt/vorta_trt/cli.py", "bench", "attention"], "vorta-trt bench attention"),
        (["/src/studies/real_size.py", "wan-14b"], "python real_size.py wan-14b"),
    ],
)
def test_environment_names_the_command_and_no_folders(
    arguments: list[str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setenv("VORTA_COMMIT", "abc")
    environment = harness.environment()
    assert environment["command"] == command
    assert environment["commit"] == "abc" and environment["date"] == date.today().isoformat()
    assert "torch" in environment["versions"] and environment["cpu_cores"] >= 1


@pytest.mark.parametrize(
    ("names", "gpu"), [("NVIDIA H200\nNVIDIA H200\n", "NVIDIA H200"), ("A\nB\n", "A, B"), (None, None)]
)
def test_gpus_of_one_kind_are_named_once(names: str | None, gpu: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "_output", lambda program, *_: names if program == "nvidia-smi" else None)
    monkeypatch.setattr(harness, "driver_version", lambda: "580.159.04")
    about = harness.environment()
    assert (about["gpu"], about["gpus"]) == (gpu, 0 if names is None else 2)
    assert about["driver"] == ("580.159.04" if names else None)


def test_a_folder_without_history_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VORTA_COMMIT", raising=False)
    assert harness.environment(tmp_path)["commit"] is None


def test_write_result(tmp_path: Path) -> None:
    path = harness.write_result(tmp_path / "results", "name", {"figure": 1})
    assert path.name == f"{date.today().isoformat()}-name.json"
    content = json.loads(path.read_text())
    assert content["figure"] == 1 and "gpu" in content
