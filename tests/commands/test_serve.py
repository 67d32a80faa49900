# SPDX-License-Identifier: Apache-2.0
"""Bad use of `vorta-trt serve`: what is a key, no server that is open by mistake, and nothing left of a refused one."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from vorta_trt.cli import app
from vorta_trt.commands.serve import KEYS, _keys


def test_keys_of_all_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("\ufeff# of ours\n first \n\n  # second\nthird#3\n", encoding="utf-8")
    monkeypatch.setenv(KEYS, "a, b,")
    assert _keys(["given"], file) == ("given", "a", "b", "first", "third#3")
    monkeypatch.setenv(KEYS, "")
    assert _keys([], None) == ()


@pytest.mark.parametrize("text", [" , ", ",", "ключ", "a b", "a\x01"])
def test_keys_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(KEYS, text)
    with pytest.raises(typer.BadParameter):
        _keys([], None)
    monkeypatch.delenv(KEYS)
    file = tmp_path / "keys"
    file.write_text("# nothing\n" + text.replace(",", ""), encoding="utf-8")
    with pytest.raises(typer.BadParameter):
        _keys([], file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(typer.BadParameter, match="cannot be read"):
        _keys([], file)
    with pytest.raises(typer.BadParameter):
        _keys([""], None)


def test_a_refused_model_leaves_no_folder_of_jobs(tmp_path: Path) -> None:
    for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "av"):
        pytest.importorskip(package)
    result = CliRunner().invoke(app, ["serve", str(tmp_path), "--port", "0", "--jobs", str(tmp_path / "jobs")])
    assert result.exit_code == 1 and f"{tmp_path}: is not a bundle: it has no manifest.json" in result.output
    assert not [*tmp_path.iterdir()]
    result = CliRunner().invoke(app, ["serve", "a.onnx", "a.onnx", "--port", "0", "--jobs", str(tmp_path / "jobs")])
    assert result.exit_code == 1 and "error: models a: have the same name; name them" in result.output
    assert not [*tmp_path.iterdir()]
