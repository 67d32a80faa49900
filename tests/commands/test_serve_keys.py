# SPDX-License-Identifier: Apache-2.0
"""API keys of `vorta-trt serve`: what is a key, and no server that is open by mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

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
