# SPDX-License-Identifier: Apache-2.0
"""The measurement of calibration, on a model that is small in every way."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import calibration
import pytest

from vorta_trt.model.families.wan import random as random_wan


def test_it_calibrates_and_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"layers": 2, "heads": 2, "head_dim": 16, "ffn_dim": 32, "text_dim": 24}
    monkeypatch.setattr(random_wan, "WAN_1_3B", tiny)
    options = ["--size", "9x64x96", "--samples", "2", "--buckets", "2", "--layers", "1", "--output", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["calibration.py", "wan-1.3b", "--work", str(tmp_path), *options])
    calibration.main()
    (file,) = tmp_path.glob("*-calibration-wan-1.3b.json")
    figures = json.loads(file.read_text())
    assert (figures["layers"], figures["tokens"], len(figures["buckets"])) == (1, 72, 2)
    assert figures["attention_flops_saved"] >= 0.7
    for stage in ("dense_pass", "measured_pass", "checked_pass"):
        assert 0 < figures[f"{stage}_seconds"] < figures["seconds"]
    assert figures["measured_pass_seconds"] > figures["dense_pass_seconds"]
