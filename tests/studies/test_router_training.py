# SPDX-License-Identifier: Apache-2.0
"""The measurement of router training, on a model that is small in every way."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import router_training

from vorta_trt.model.families.wan import random as random_wan


def test_it_trains_and_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"layers": 2, "heads": 2, "head_dim": 16, "ffn_dim": 32, "text_dim": 24}
    monkeypatch.setattr(random_wan, "WAN_1_3B", tiny)
    options = ["--size", "9x64x96", "--steps", "3", "--batch-size", "1", "--layers", "1", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["router_training.py", "wan-1.3b", "--work", str(tmp_path), *options])
    router_training.main()
    (file,) = tmp_path.glob("*-router-training-wan-1.3b.json")
    figures = json.loads(file.read_text())
    assert figures["layers"] == 1
    assert figures["tokens"] == 72
    assert [line["step"] for line in figures["curve"]] == [1, 2, 3]
    assert figures["step_seconds_median"] == pytest.approx(figures["curve"][2]["seconds"], abs=1e-3)
