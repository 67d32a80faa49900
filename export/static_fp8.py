# SPDX-License-Identifier: Apache-2.0
"""`Fp8Linear` in the native form of engines: quantising and dequantising nodes, with a static scale of the input.

    tokens -> QuantizeLinear -> DequantizeLinear -\
                                                   MatMul -> Add bias -> activation
    weight e4m3 -------------> DequantizeLinear --/

The tokens are the input of `Quantize`; a norm that quantises is split into a norm and `Quantize` to get them.

TensorRT fuses these nodes into one 8-bit product. It takes no scale that is computed at run time, so a layer needs a
static one from a calibration or from its checkpoint. Scales have the type of the tokens; the scales of the weights are
rounded to it. Inputs beyond 448 times the scale are clipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from vorta_trt.export.names import OPSET_17
from vorta_trt.plugins.operator_schema import FP8_LINEAR, JOINED_QUANTIZE, PLUGIN_ATTRIBUTES, QUANTIZE, UNQUANTIZED

_WEIGHT = ".weight"


def static_nodes(model: onnx.ModelProto, input_scales: Mapping[str, float]) -> frozenset[str]:
    """Names of the `Fp8Linear` nodes that can be native: with weights in e4m3 and a scale for their layer."""
    if not input_scales:
        return frozenset()
    if any(entry.version == OPSET_17 for entry in model.opset_import if entry.domain == ""):
        return frozenset()  # its e4m3 weights are stored as int32
    weight = FP8_LINEAR.inputs.index("weight")
    return frozenset(
        node.name
        for node in model.graph.node
        if (node.domain, node.op_type) == FP8_LINEAR.node_type
        and node.input[weight].removesuffix(_WEIGHT) in input_scales
    )


def make_static(model: ir.Model, names: frozenset[str], input_scales: Mapping[str, float]) -> None:
    """Replaces `Fp8Linear` nodes by their native form, in place.

    Args:
        model: An exported model of opset 23.
        names: Names of the nodes; see `static_nodes`.
        input_scales: Static scales of the layers' inputs, by layer.
    """
    graph = model.graph
    for node in list(graph):
        if node.name in names:
            quantized, _, weight, weight_scale, bias = _inputs(node)
            scale = input_scales[str(weight.name).removesuffix(_WEIGHT)]
            new = _Native(graph, node, _unquantized(graph, quantized)).nodes(weight, weight_scale, bias, scale)
            ir.convenience.replace_nodes_and_values(graph, node, [node], new, node.outputs, new[-1].outputs)
    for node in list(graph):
        quantizes = (node.domain, node.op_type) in (QUANTIZE.node_type, JOINED_QUANTIZE.node_type)
        if quantizes and not any(value.uses() for value in node.outputs):
            graph.remove(node, safe=True)


def _unquantized(graph: ir.Graph, quantized: ir.Value) -> ir.Value:
    """The tokens that were quantised, in the type of the activations."""
    node = quantized.producer()
    assert node is not None
    if node.op_type == JOINED_QUANTIZE.name:
        return _side_by_side(graph, node)
    if node.op_type in UNQUANTIZED:
        node = _taken_apart(graph, node)
    (tokens,) = _inputs(node)
    return tokens


def _side_by_side(graph: ir.Graph, node: ir.Node) -> ir.Value:
    """Concatenates the inputs of a `JoinedQuantize`; `make_static` removes that node once nothing reads it."""
    joined = ir.node("Concat", node.inputs, {"axis": 2}, name=f"{node.name}.Concat")
    joined.metadata_props.update(node.metadata_props)
    (tokens,), (first, *_) = joined.outputs, _inputs(node)
    tokens.name, tokens.type, tokens.shape = f"{joined.name}_output", first.type, node.outputs[0].shape
    graph.insert_before(node, joined)
    return tokens


def _taken_apart(graph: ir.Graph, node: ir.Node) -> ir.Node:
    """Replaces a norm that quantises by a norm that does not and a `Quantize`; returns the `Quantize` node."""
    operator = UNQUANTIZED[node.op_type]
    *before, quantized, scale = node.outputs
    norm = ir.node(operator.name, node.inputs, node.attributes, domain=node.domain, num_outputs=len(before) + 1)
    tokens = norm.outputs[-1]
    selection = {name: node.attributes[name] for name in PLUGIN_ATTRIBUTES}
    quantizing = ir.node(QUANTIZE.name, [tokens], selection, domain=node.domain, num_outputs=2)
    for made in (norm, quantizing):
        made.name = f"{node.name}.{made.op_type}"
        made.metadata_props.update(node.metadata_props)
    activation = node.inputs[operator.activation_input]
    assert activation is not None
    tokens.name, tokens.type, tokens.shape = f"{norm.name}_output", activation.type, quantized.shape
    old, new = [*before, quantized, scale], [*norm.outputs[:-1], *quantizing.outputs]
    for was, value in zip(old, new, strict=True):
        value.type, value.shape = was.type, was.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], [norm, quantizing], old, new)
    return quantizing


class _Native:
    """Makes the native nodes that replace one `Fp8Linear` node."""

    def __init__(self, graph: ir.Graph, node: ir.Node, tokens: ir.Value) -> None:
        self.graph, self.node, self.tokens = graph, node, tokens
        assert tokens.dtype is not None
        self.dtype: ir.DataType = tokens.dtype
        self.made: list[ir.Node] = []

    def nodes(self, weight: ir.Value, weight_scale: ir.Value, bias: ir.Value, scale: float) -> list[ir.Node]:
        of_input = self.constant("input_scale", np.array(scale, np.float32).astype(self.dtype.numpy()))  # []
        zero = self.constant("zero_point", np.zeros((), ir.DataType.FLOAT8E4M3FN.numpy()))  # []
        quantised = self.node_of("QuantizeLinear", self.tokens, of_input, zero, shape=self.tokens.shape)
        quantised.dtype = ir.DataType.FLOAT8E4M3FN
        rows = self.node_of("DequantizeLinear", quantised, of_input, zero, shape=self.tokens.shape)  # [B, X, K]
        of_weight = weight_scale
        if self.dtype != ir.DataType.FLOAT:
            of_weight = self.node_of("Cast", weight_scale, shape=weight_scale.shape, to=self.dtype)  # [O]
        matrix = self.node_of("DequantizeLinear", weight, of_weight, shape=weight.shape, axis=0)  # [O, K]
        assert weight.shape is not None
        turned = self.node_of("Transpose", matrix, shape=ir.Shape(reversed(weight.shape)), perm=[1, 0])  # [K, O]
        shape = self.node.outputs[0].shape
        result = self.node_of("Add", self.node_of("MatMul", rows, turned, shape=shape), bias, shape=shape)
        if self.node.attributes.get_string("activation", "none") == "gelu_tanh":
            self.node_of("Gelu", result, shape=shape, approximate="tanh")
        return self.made

    def node_of(self, operator: str, *inputs: ir.Value, shape: ir.Shape | None, **attributes: Any) -> ir.Value:
        node = ir.node(operator, inputs, attributes, name=f"{self.node.name}.{operator}")
        if any(made.name == node.name for made in self.made):
            node.name = f"{node.name}_{len(self.made)}"
        (output,) = node.outputs
        output.name, output.dtype, output.shape = f"{node.name}_output_0", self.dtype, shape
        node.metadata_props.update(self.node.metadata_props)
        self.made.append(node)
        return output

    def constant(self, what: str, content: np.ndarray[Any, Any]) -> ir.Value:
        name = f"{self.node.name}.{what}"
        value = ir.Value(name=name, const_value=ir.tensor(content, name=name))
        assert value.const_value is not None
        value.shape, value.type = ir.Shape(content.shape), ir.TensorType(value.const_value.dtype)
        self.graph.register_initializer(value)
        return value


def _inputs(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None]
