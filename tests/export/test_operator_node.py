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

from vorta_trt.export.function_body import portable_function
from vorta_trt.export.names import OPSET
from vorta_trt.export.operator_node import operator_schema, translation_table
from vorta_trt.export.quiet_exporter import without_known_noise
from vorta_trt.model import AttentionGeometry, routed_attention
from vorta_trt.plugins.operator_schema import BLOCK_OPERATORS, OPERATORS, ROUTED_ATTENTION, Operator


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
    model.functions.append(portable_function(ROUTED_ATTENTION.name, text=text_tokens > 0))
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = inputs(3)
    (got,) = session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})
    np.testing.assert_allclose(got, module(**feed).numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("operator", [each for each in OPERATORS.values() if each.is_portable], ids=str)
def test_schema_has_the_tensors_attributes_and_defaults_of_the_function(operator: Operator) -> None:
    schema, function = operator_schema(operator), portable_function(operator.name, text=True)
    assert [tensor.name for tensor in schema.inputs] == list(function.input) == list(operator.inputs)
    assert [tensor.name for tensor in schema.outputs] == list(operator.outputs)
    assert len(function.output) == len(operator.outputs)
    assert sorted(schema.attributes) == sorted(operator.node_attributes)
    required = {name for name, attribute in schema.attributes.items() if attribute.required}
    assert required == set(function.attribute)
    value: Callable[[onnx.AttributeProto], object] = onnx.helper.get_attribute_value
    defaults = {name: value(a.default_value) for name, a in schema.attributes.items() if not a.required}
    assert defaults == {attribute.name: value(attribute) for attribute in function.attribute_proto}


class Block(nn.Module):
    """Every block operator once, as a block of a transformer calls them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.weight, self.bias = nn.Parameter(torch.randn(width, width)), nn.Parameter(torch.randn(width))
        self.norm = nn.Parameter(torch.rand(width // heads))
        self.register_buffer("float8", torch.randn(width, width).to(torch.float8_e4m3fn))

    def forward(self, tokens: Tensor, text: Tensor, modulation: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ops, weights = torch.ops.vorta, (self.weight, self.bias)
        scale, shift, gate = modulation.chunk(3, dim=1)  # [B, 2, E] each
        normed = ops.norm_modulate(tokens, scale, shift, 1e-6, 3)
        halves = normed.chunk(2, dim=2)
        products = [ops.linear(normed, *weights, "none"), ops.joined_linear(*halves, *weights, "gelu_tanh")]
        query, key = ops.qk_norm_rotary(*products, self.norm, self.norm, cos, sin, self.heads, 1e-5)
        keys = ops.head_norm(text, self.norm, self.heads, 1e-6)  # [B, Y, N, D]
        update = ops.cross_attention(query + key, keys, text.unflatten(2, (self.heads, -1)), 0.0).flatten(2)
        tokens, normed = ops.residual_norm_modulate(tokens, update, gate, scale[:, :1], shift[:, :1], 1e-6, 3)
        products = [
            ops.fp8_linear(*quantised, self.float8, self.bias.abs(), self.bias, "gelu_tanh")
            for quantised in (
                ops.quantize(normed),
                ops.joined_quantize(*normed.chunk(2, dim=2)),
                ops.norm_modulate_quantize(text, scale, shift, 1e-6, 3),
                ops.residual_norm_modulate_quantize(tokens, normed, gate, scale, shift, 1e-6, 3)[1:],
            )
        ]
        return torch.cat((tokens, *products), dim=1)


def test_block_operators_through_the_exporter() -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    generator = torch.Generator().manual_seed(seed)
    heads, head_dim = 3, 16
    width = heads * head_dim
    module = Block(width, heads)

    def inputs(batch: int) -> dict[str, Tensor]:
        shapes = {"tokens": (batch, 7, width), "text": (batch, 5, width), "modulation": (batch, 6, width)}
        made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        angles = torch.randn((1, 7, 1, head_dim // 2), generator=generator)
        return {**made, "cos": angles.cos(), "sin": angles.sin()}

    batch = torch.export.Dim("batch")
    shapes = {name: {0: batch} if name in ("tokens", "text", "modulation") else None for name in inputs(2)}
    with torch.no_grad(), without_known_noise():
        program = torch.export.export(module, (), inputs(2), dynamic_shapes=shapes)
        exported = torch.onnx.export(
            program, dynamo=True, custom_translation_table=translation_table(), opset_version=OPSET, verbose=False
        )
    assert exported is not None
    model = exported.model_proto
    nodes = [node for node in model.graph.node if node.domain == "vorta"]
    assert {node.op_type for node in nodes} == {operator.name for operator in BLOCK_OPERATORS}
    for node in nodes:
        operator = OPERATORS[node.op_type]
        assert sorted(a.name for a in node.attribute) == sorted(operator.node_attributes)
        assert (len(node.input), len(node.output)) == (len(operator.inputs), len(operator.outputs))
    model.functions.extend(portable_function(operator.name) for operator in BLOCK_OPERATORS)
    onnx.checker.check_model(model, full_check=True)
    feed = inputs(3)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})
    wanted = module(**feed).detach()
    # A rounding to e4m3 may fall to the other side: an eighth of a few of the summands.
    assert ((torch.from_numpy(got) - wanted).norm() / wanted.norm()).item() < 0.01


def test_identity() -> None:
    assert (ROUTED_ATTENTION.node_type, ROUTED_ATTENTION.version) == (("vorta", "RoutedAttention"), "1")
    assert ROUTED_ATTENTION.selection == {"plugin_namespace": "vorta", "plugin_version": "1"}
