# SPDX-License-Identifier: Apache-2.0
"""From a prompt to an mp4, tiny, on the CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import prompt_to_mp4
import pytest


def test_the_table_says_where_the_time_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["prompt_to_mp4.py", "--work", str(tmp_path), "--tiny", "--steps", "2"])
    prompt_to_mp4.main()
    (result,) = tmp_path.glob("*-prompt-to-mp4.json")
    *_, last = json.loads(result.read_text(encoding="utf-8"))["videos"]
    assert last["frames"] == [*prompt_to_mp4.TINY_VIDEO, 3] and last["launches"] == 2
    assert set(last["stages"]) == {"text", "denoise", "decode", "rest of mp4"}
    assert sum(last["stages"].values()) == pytest.approx(last["seconds"], rel=0.2)
    assert (tmp_path / "1.mp4").stat().st_size == last["mp4_bytes"] > 0
