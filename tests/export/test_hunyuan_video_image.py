# SPDX-License-Identifier: Apache-2.0
"""Exported HunyuanVideo that begins with an image, both kinds: the contract, and the same numbers as torch."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from vorta_trt.export import read_metadata

from ..kept import Kept
from ..tiny import Tiny, make_tiny
from .running import ROUTER, errors, fresh_inputs, in_onnxruntime, in_torch

LAYERS, HEADS, TEXT = 2, 3, 540


@pytest.fixture(scope="module", params=["latent_concat", "token_replace"])
def tiny(request: pytest.FixtureRequest, kept: Kept) -> Tiny:
    return make_tiny(kept, f"hunyuan_video {request.param}")


def test_interface_is_the_contract(tiny: Tiny) -> None:
    metadata = read_metadata(tiny.onnx)
    concat = tiny.name.endswith("latent_concat")
    assert [str(info) for info in metadata.inputs] == [
        f"hidden_states float32[batch, {9 if concat else 4}, 3, 8, 12]",
        "timestep float32[batch]",
        f"encoder_hidden_states float32[batch, {TEXT}, 32]",
        f"encoder_attention_mask int32[batch, {TEXT}]",
        "pooled_projections float32[batch, 24]",
        *([] if concat else ["guidance float32[batch]"]),
        "tau float32[1]",
        f"route_override int32[{LAYERS}, {HEADS}]",
    ]
    assert [str(info) for info in metadata.outputs] == [
        "sample float32[batch, 4, 3, 8, 12]",
        f"routes int32[{LAYERS}, batch, {HEADS}]",
    ]
    assert metadata.text_length == metadata.attention_geometry.text_tokens == TEXT
    assert metadata.has_router and metadata.attention_geometry == tiny.model().geometry
    operators = {node.op_type for node in onnx.load(tiny.onnx).graph.node}
    assert not {"ScatterND", "ScatterElements", "Loop"} & operators, "the first frame is chosen, not written to"


@pytest.mark.parametrize(("tau", "routing"), [(0.3, ROUTER), (0.3, "mixed"), (1.1, ROUTER)])
def test_float32_in_onnxruntime(tiny: Tiny, tau: float, routing: int | str) -> None:
    model = tiny.model()
    inputs = fresh_inputs(model, 2, tau, routing)
    expected, expected_routes = in_torch(model, inputs)
    sample, routes = in_onnxruntime(tiny.onnx, inputs)
    np.testing.assert_array_equal(routes, expected_routes)
    print(f"error {errors(sample, expected).max():.1e}")
    assert np.isfinite(sample).all() and errors(sample, expected).max() < 1e-5
