# SPDX-License-Identifier: Apache-2.0
"""From a prompt to an mp4 by two processes that share every pass and the VAE's rows, tiny, on the CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import prompt_to_mp4_gpus
import pytest

from vorta_trt.runtime.frames import read_frames


def test_the_table_says_where_the_time_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--gpus", "2", "--tiny", "--steps", "2", "--videos", "1", "--strict"]
    monkeypatch.setattr(sys, "argv", ["prompt_to_mp4_gpus.py", "--work", str(tmp_path), *options])
    prompt_to_mp4_gpus.main()
    (result,) = tmp_path.glob("*-prompt-to-mp4-gpus.json")
    figures = json.loads(result.read_text(encoding="utf-8"))
    (video,) = figures["videos"]
    assert figures["layout"] == "2 ranks share every pass"
    assert video["frames"] == [*prompt_to_mp4_gpus.TINY_VIDEO, 3] and video["launches"] == 2
    assert set(video["stages"]) == {"text", "denoise", "decode", "rest of mp4"}
    assert len(list(read_frames(tmp_path / "0.mp4"))) == prompt_to_mp4_gpus.TINY_VIDEO[0]
