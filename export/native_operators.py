# SPDX-License-Identifier: Apache-2.0
"""Replaces our operators in an exported graph by the standard operators that they stand for, for a native build.

The portable function takes the place of each node. Everything that the node's attributes and static shapes decide is
folded, so that a builder sees the same graph as if there had been no operator of ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    IdentityEliminationPass,
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    ShapeInferencePass,
)
from onnxscript.optimizer import fold_constants_ir

from vorta_trt.export.function_body import portable_function
from vorta_trt.export.names import OPSET, OPSET_17
from vorta_trt.export.opset17 import lower_to_opset_17
from vorta_trt.export.static_fp8 import make_static, static_nodes
from vorta_trt.plugins.operator_schema import FP8_LINEAR, QUANTIZING, ROUTED_ATTENTION

_FOLD_LIMIT = 1 << 16  # elements; the ones of a norm without weights


def with_native_operators(
    model: onnx.ModelProto, names: Collection[str], input_scales: Mapping[str, float] = MappingProxyType({})
) -> onnx.ModelProto:
    """The model with the nodes of some operators inlined; weights stay where they are, under their names.

    Args:
        model: An exported model. If it is of opset 17, the standard operators are lowered to that opset.
        names: Names of the operators to inline.
        input_scales: Static input scales of linear layers with fp8 products, by layer. A layer with a scale takes the
            form of `static_fp8`. A layer without one stays a node of the operator, and so does the operator that
            quantises its input: natively, no engine takes scales that are computed at run time.
    """
    converted = ir.serde.deserialize_model(model)
    if FP8_LINEAR.name in names:
        make_static(converted, static_nodes(model, input_scales), input_scales)
    inline_operators(converted, set(names) - {FP8_LINEAR.name, *QUANTIZING})
    return ir.serde.serialize_model(converted)


def inline_operators(model: ir.Model, names: Collection[str]) -> None:
    """`with_native_operators`, in place."""
    graph = model.graph
    constants = _Constants(graph)
    for node in list(graph):
        if node.domain == ROUTED_ATTENTION.namespace and node.op_type in names:
            _inline(graph, node, constants)
    for key in [key for key in model.functions if key[0] == ROUTED_ATTENTION.namespace and key[1] in names]:
        del model.functions[key]
    if graph.opset_imports[""] == OPSET:
        _infer_shapes(model)


def _inline(graph: ir.Graph, node: ir.Node, constants: _Constants) -> None:
    """Puts the standard operators in the place of a node."""
    alone = _alone(node)
    _simplify(alone)
    if graph.opset_imports[""] == OPSET_17:
        lower_to_opset_17(alone)
    inner = alone.graph
    new_nodes, results = list(inner), list(inner.outputs)
    for stand_in, value in zip(list(inner.inputs), _present(node), strict=True):
        stand_in.replace_all_uses_with(value)
    for value in list(inner.initializers.values()):
        inner.initializers.pop(str(value.name))
        value.replace_all_uses_with(constants.of(value))
    inner.outputs.clear()
    inner.remove(new_nodes)
    ir.convenience.replace_nodes_and_values(graph, node, [node], new_nodes, list(node.outputs), results)
    _name(str(node.name), new_nodes)
    for made in new_nodes:
        made.metadata_props.update(node.metadata_props)


def _alone(node: ir.Node) -> ir.Model:
    """A model of one node and its function. Its inputs stand for the node's, so no pass sees the rest of the graph."""
    stand_ins = [
        ir.Value(name=f"input_{index}", shape=value.shape, type=value.type)
        for index, value in enumerate(_present(node))
    ]
    call = ir.node(node.op_type, stand_ins, node.attributes, domain=node.domain, num_outputs=len(node.outputs))
    for index, (made, value) in enumerate(zip(call.outputs, node.outputs, strict=True)):
        made.name, made.shape, made.type = f"result_{index}", value.shape, value.type
    opsets = {"": OPSET, node.domain: int(ROUTED_ATTENTION.version)}
    graph = ir.Graph(stand_ins, call.outputs, nodes=[call], opset_imports=opsets, name=node.op_type)
    function = ir.serde.deserialize_function(portable_function(node.op_type))
    return ir.Model(graph, ir_version=10, functions=[function])


def _present(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None]


def _simplify(model: ir.Model) -> None:
    """Inlines the function and folds what attributes and shapes decide."""
    InlinePass()(model)
    _decide_by_constants(model.graph)
    RemoveUnusedNodesPass()(model)
    for _ in range(2):  # after the choice of a branch, more may fold
        fold_constants_ir(model, onnx_shape_inference=True, input_size_limit=_FOLD_LIMIT, output_size_limit=_FOLD_LIMIT)
    passes = ir.passes.Sequential(
        IdentityEliminationPass(),
        RemoveUnusedNodesPass(),
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        CommonSubexpressionEliminationPass(),
        ShapeInferencePass(),
    )
    passes(model)


def _infer_shapes(model: ir.Model) -> None:
    """Infers shapes without the functions, which the inference would look into."""
    functions = dict(model.functions)
    model.functions.clear()
    ShapeInferencePass()(model)
    model.functions.update(functions)


def _decide_by_constants(graph: ir.Graph) -> None:
    """Replaces conditions that depend on constants alone by their values: `fold_constants_ir` compares no strings."""
    for node in list(graph):
        if node.op_type == "If" and (found := _constant_condition(graph, node.inputs[0])) is not None:
            value = ir.Value(name=f"{node.name}.condition", const_value=ir.tensor(found))
            value.shape, value.type = ir.Shape(found.shape), ir.TensorType(ir.DataType.BOOL)
            graph.register_initializer(value)
            node.replace_input_with(0, value)


def _constant_condition(graph: ir.Graph, condition: ir.Value | None) -> np.ndarray[Any, Any] | None:
    """The value of a condition; None if anything but constants decides it."""
    needed: set[ir.Node] = set()
    open_values = [condition]
    while open_values:
        value = open_values.pop()
        producer = None if value is None else value.producer()
        if producer is None:
            return None
        needed.add(producer)
        open_values.extend(producer.inputs)
    nodes = [ir.serde.serialize_node(node) for node in graph if node in needed]
    assert condition is not None and condition.name is not None
    result = onnx.helper.make_tensor_value_info(condition.name, onnx.TensorProto.BOOL, None)
    alone = onnx.helper.make_graph(nodes, "condition", [], [result])
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    (found,) = ReferenceEvaluator(onnx.helper.make_model(alone, opset_imports=opsets)).run(None, {})
    return np.asarray(found)


def _name(call: str, nodes: Sequence[ir.Node]) -> None:
    """Names inlined nodes `blocks.0.attn1/HeadNorm.RMSNormalization`, in the module of the node they stand for."""
    counts: Counter[str] = Counter()
    for node in nodes:
        name = f"{call}.{node.op_type}"
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name] - 1}"
        for index, output in enumerate(node.outputs):
            if not output.is_graph_output():
                output.name = f"{node.name}_output_{index}"


class _Constants:
    """Constants that inlined operators add to the graph, without duplicates."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.known: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}

    def of(self, value: ir.Value) -> ir.Value:
        """Returns this graph's constant with the value of an initializer of another graph; adds it if it is new."""
        content = value.const_value
        assert content is not None
        array = content.numpy()
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self.known:
            number = len(self.known)
            while (name := f"native_{number}") in self.graph.initializers:
                number += 1
            own = ir.Value(name=name, const_value=ir.tensor(array, name=name))
            own.shape, own.type = ir.Shape(array.shape), ir.TensorType(content.dtype)
            self.graph.register_initializer(own)
            self.known[key] = own
        return self.known[key]
