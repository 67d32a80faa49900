# SPDX-License-Identifier: Apache-2.0
"""Exported models of videos that begin with an image, against the same models in torch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from ..kept import Kept
from ..tiny import make_tiny
from .running import errors, fresh_inputs, in_onnxruntime, in_torch


@pytest.mark.parametrize("name", ["wan channels", "wan embedding", "wan first and last"])
def test_mixed_routes_in_onnxruntime(kept: Kept, name: str) -> None:
    tiny = make_tiny(kept, name)
    model = tiny.model()
    inputs = fresh_inputs(model, 2, 0.3, "mixed")
    expected, expected_routes = in_torch(model, inputs)
    sample, routes = in_onnxruntime(tiny.onnx, inputs)
    np.testing.assert_array_equal(routes, expected_routes)
    assert sample.shape == (2, 4, 3, 8, 12) and np.isfinite(sample).all()
    assert errors(sample, expected).max() < 1e-5
    graph = onnx.load(tiny.onnx, load_external_data=False).graph
    shapes = {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim][1:] for value in graph.input}
    assert shapes["hidden_states"] == [12, 3, 8, 12]
    rows = {"wan channels": None, "wan embedding": [257, 32], "wan first and last": [514, 32]}[name]
    assert shapes.get("encoder_hidden_states_image") == rows
