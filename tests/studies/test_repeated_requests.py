# SPDX-License-Identifier: Apache-2.0
"""The measurement of memory over requests, on a few of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import repeated_requests

from ..tiny import Tiny


def test_a_few(tiny_hunyuan_video: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated_requests, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["repeated_requests.py", str(tiny_hunyuan_video.onnx), "--requests", "20"])
    repeated_requests.main()
    (file,) = tmp_path.iterdir()
    figures = json.loads(file.read_text())
    assert (figures["launches_per_request"], figures["executor"]) == (2, "onnxruntime")
    assert len(figures["resident_mib"]) == 2
    assert min(figures["resident_mib"]) > 50
