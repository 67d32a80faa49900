# SPDX-License-Identifier: Apache-2.0
"""Precisions and ways to decode with a VAE, tiny, on the CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import vae_decoding


def test_every_row_is_beside_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # and back
    work = tmp_path / "work"
    work.mkdir()
    options = ["--tiny", "--output", str(tmp_path), "--only", "fp32-compiled-measured,bf16,fp32-engine"]
    options += ["--work", str(work)]
    monkeypatch.setattr(sys, "argv", ["vae_decoding.py", *options])
    vae_decoding.main()
    (result,) = tmp_path.glob("*-vae-decoding.json")
    rows = json.loads(result.read_text(encoding="utf-8"))["rows"]
    assert [row["row"] for row in rows] == ["fp32", "fp32-compiled-measured", "bf16", "fp32-engine"]
    assert all(len(row["seconds"]) == vae_decoding.CALLS and row["finite"] for row in rows)
    same, compiled, half, engine = (row["relative_error"] for row in rows)
    assert same == 0 <= compiled < 1e-5 < half < 0.05 and engine < 1e-5
    assert "vae_decoder" in str(sorted(work.iterdir()))  # it was the exported decoder that decoded


def test_rows_that_are_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["vae_decoding.py", "--only", "fp8"])
    with pytest.raises(SystemExit):
        vae_decoding.main()
    assert "--only fp8: must be among fp16, fp16-measured" in capsys.readouterr().err


def test_an_engine_needs_a_folder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["vae_decoding.py", "--only", "fp16-engine"])
    with pytest.raises(SystemExit):
        vae_decoding.main()
    assert "needs --work" in capsys.readouterr().err
