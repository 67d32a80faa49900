# SPDX-License-Identifier: Apache-2.0
"""The torch operator through torch's exporter, with text tokens in the self-attention and without."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from vorta_trt.export.function_body import routed_attention_function
from vorta_trt.export.operator_node import operator_schema, translation_table
from vorta_trt.export.quiet_exporter import without_known_noise
from vorta_trt.model import AttentionGeometry, routed_attention
from vorta_trt.plugins.operator_schema import ROUTED_ATTENTION


class SelfAttention(nn.Module):
    def __init__(self, geometry: AttentionGeometry, attention_precision: str) -> None:
        super().__init__()
        self.geometry = geometry
        self.attention_precision = attention_precision

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, routes: Tensor, text_length: Tensor | None = None
    ) -> Tensor:
        return routed_attention(
            query, key, value, routes, self.geometry, text_length, attention_precision=self.attention_precision
        )


@pytest.mark.parametrize("text_tokens", [0, 6])
@pytest.mark.parametrize("precision", ["same", "fp8"])
def test_module_with_the_operator(text_tokens: int, precision: str) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    generator = torch.Generator().manual_seed(seed)
    geometry = AttentionGeometry((2, 4, 6), (1, 2, 3), (1, 3, 1), (2, 2, 3), 5, "key", text_tokens)

    def inputs(batch: int) -> dict[str, Tensor]:
        shape = (batch, geometry.tokens, 3, 8)
        made = {name: torch.randn(shape, generator=generator) for name in ROUTED_ATTENTION.inputs[:3]}
        made["routes"] = torch.randint(0, 3, (batch, 3), generator=generator, dtype=torch.int32)
        if text_tokens:
            made["text_length"] = torch.randint(0, text_tokens + 1, (batch,), generator=generator, dtype=torch.int32)
        return made

    module = SelfAttention(geometry, precision)
    example = inputs(2)
    batch = torch.export.Dim("batch")
    with without_known_noise():
        program = torch.export.export(module, (), example, dynamic_shapes={name: {0: batch} for name in example})
        exported = torch.onnx.export(
            program, dynamo=True, custom_translation_table=translation_table(), opset_version=23, verbose=False
        )
    assert exported is not None
    model = exported.model_proto
    (node,) = (node for node in model.graph.node if node.op_type == ROUTED_ATTENTION.name)
    assert len(node.input) == len(example)
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert sorted(attributes) == sorted(ROUTED_ATTENTION.node_attributes)
    assert attributes["attention_precision"] == precision.encode()
    model.functions.append(routed_attention_function(text=text_tokens > 0))
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = inputs(3)
    (got,) = session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})
    np.testing.assert_allclose(got, module(**feed).numpy(), rtol=0, atol=1e-5)


def test_schema_has_the_attributes_and_defaults_of_the_function() -> None:
    schema, function = operator_schema(), routed_attention_function(text=True)
    assert sorted(schema.attributes) == sorted(ROUTED_ATTENTION.node_attributes)
    required = {name for name, attribute in schema.attributes.items() if attribute.required}
    assert required == set(function.attribute)
    value: Callable[[onnx.AttributeProto], object] = onnx.helper.get_attribute_value
    defaults = {name: value(a.default_value) for name, a in schema.attributes.items() if not a.required}
    assert defaults == {attribute.name: value(attribute) for attribute in function.attribute_proto}


def test_identity() -> None:
    assert (ROUTED_ATTENTION.node_type, ROUTED_ATTENTION.version) == (("vorta", "RoutedAttention"), "1")
    assert ROUTED_ATTENTION.selection == {"plugin_namespace": "vorta", "plugin_version": "1"}
