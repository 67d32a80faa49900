# SPDX-License-Identifier: Apache-2.0
"""From a prompt to an mp4 by a rank, tiny, on the CPU; several have tests in tests/runtime/parallel."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import prompt_to_mp4_gpus
import pytest

from vorta_trt.runtime.frames import read_frames
from vorta_trt.runtime.parallel.world import join


def test_the_table_says_where_the_time_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(function: Any, options: Any, **how: Any) -> list[Any]:
        with join("cpu", send=lambda text: how["on_message"](0, text)) as world:
            return [function(world, options)]

    monkeypatch.setattr(prompt_to_mp4_gpus, "launch", launch)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    rank = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in rank.items():
        monkeypatch.setenv(name, str(value))
    options = ["--gpus", "1", "--tiny", "--steps", "2", "--videos", "1", "--strict", "--vae-precision", "bf16"]
    monkeypatch.setattr(sys, "argv", ["prompt_to_mp4_gpus.py", "--work", str(tmp_path), *options])
    prompt_to_mp4_gpus.main()
    (result,) = tmp_path.glob("*-prompt-to-mp4-gpus.json")
    figures = json.loads(result.read_text(encoding="utf-8"))
    (video,) = figures["videos"]
    assert figures["layout"] == "1 rank"
    assert video["frames"] == [*prompt_to_mp4_gpus.TINY_VIDEO, 3] and video["launches"] == 2
    assert set(video["stages"]) == {"text", "denoise", "decode", "rest of mp4"}
    assert len(list(read_frames(tmp_path / "0.mp4"))) == prompt_to_mp4_gpus.TINY_VIDEO[0]
