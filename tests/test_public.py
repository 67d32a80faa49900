# SPDX-License-Identifier: Apache-2.0
"""`import vorta_trt`: the public names, loaded on first use."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import vorta_trt

NAMES = {
    "AttentionGeometry": "vorta_trt.model",
    "Bundle": "vorta_trt.engines",
    "Engine": "vorta_trt.runtime",
    "RouteTable": "vorta_trt.model",
    "RoutedTransformer": "vorta_trt.model",
    "SamplingParams": "vorta_trt.runtime",
    "VortaPipeline": "vorta_trt.runtime",
    "VortaTransformer": "vorta_trt.runtime",
    "build_engine": "vorta_trt.engines",
    "export_onnx": "vorta_trt.export",
    "routed_attention": "vorta_trt.model",
}


def test_the_names_and_their_rooms() -> None:
    assert set(vorta_trt.__all__) == set(NAMES) <= set(dir(vorta_trt))
    for name, room in NAMES.items():
        assert getattr(vorta_trt, name) is getattr(__import__(room, fromlist=[name]), name)
    assert vorta_trt.__version__ == version("vorta-trt")
    with pytest.raises(AttributeError, match="no attribute 'VideoGenerator'"):
        vorta_trt.VideoGenerator  # noqa: B018


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import vorta_trt; dir(vorta_trt)", {"torch", "diffusers", "pydantic", "numpy", "onnx"}),
        ("from vorta_trt import SamplingParams, AttentionGeometry; SamplingParams(seed=1)", {"torch", "diffusers"}),
    ],
)
def test_an_import_is_cheap(statement: str, heavy: set[str]) -> None:
    code = f"{statement}; import sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not heavy & set(loaded)
