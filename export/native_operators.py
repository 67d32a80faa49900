# SPDX-License-Identifier: Apache-2.0
"""Operators of an exported graph as the standard operators that they stand for, where an engine is to have no plugin.

The portable function takes the place of each node, and what its attributes and the static shapes decide is folded, so
that a builder sees what it would have seen had there been no operator of ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import (
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    IdentityEliminationPass,
    InlinePass,
    LiftConstantsToInitializersPass,
    RemoveUnusedNodesPass,
    ShapeInferencePass,
)
from onnxscript.optimizer import fold_constants_ir

from vorta_trt.export.function_body import portable_function
from vorta_trt.export.names import OPSET
from vorta_trt.export.opset17 import lower_to_opset_17
from vorta_trt.export.static_fp8 import make_static, static_nodes
from vorta_trt.plugins.operator_schema import FP8_LINEAR, ROUTED_ATTENTION

_CALL = "vorta_trt.call"  # on inlined nodes: the name of the node that they stand for
_FOLD_LIMIT = 1 << 16  # elements; the ones of a norm without weights


def with_native_operators(
    model: onnx.ModelProto, names: Collection[str], input_scales: Mapping[str, float] = MappingProxyType({})
) -> onnx.ModelProto:
    """The model with the nodes of some operators inlined; weights stay where they are, under their names.

    Args:
        model: An exported one. In opset 17 the standard operators are lowered to it.
        names: Of the operators.
        input_scales: With fp8 products among them, of the inputs of linear layers, by layer. Layers with one take the
            form of `static_fp8`; others stay nodes of the operator, whose scales on the fly no engine has natively.
    """
    converted = ir.serde.deserialize_model(model)
    if FP8_LINEAR.name in names:
        make_static(converted, static_nodes(model, input_scales), input_scales)
    inline_operators(converted, set(names) - {FP8_LINEAR.name})
    return ir.serde.serialize_model(converted)


def inline_operators(model: ir.Model, names: Collection[str]) -> None:
    """`with_native_operators`, in place."""
    graph = model.graph
    opset = graph.opset_imports[""]
    calls = [node for node in graph if node.domain == ROUTED_ATTENTION.namespace and node.op_type in names]
    if not calls:
        return
    others = dict(model.functions)  # nothing calls for them here, and shape inference would look into them
    model.functions.clear()
    for name in {node.op_type for node in calls}:
        function = ir.serde.deserialize_function(portable_function(name))
        model.functions[function.identifier()] = function
    for node in calls:
        node.metadata_props[_CALL] = str(node.name)
    before = set(graph) - set(calls)
    weights = {value: value.const_value for value in graph.initializers.values() if _is_weight(value)}
    for value in weights:  # as inputs, which nothing folds or reads
        value.const_value = None
        graph.initializers.pop(str(value.name))
        graph.inputs.append(value)
    graph.opset_imports[""] = OPSET
    InlinePass(lambda function: function.name in names)(model)
    _decide_by_constants(graph)
    RemoveUnusedNodesPass()(model)
    for _ in range(2):  # what a branch that is chosen leaves behind may fold
        fold_constants_ir(model, onnx_shape_inference=True, input_size_limit=_FOLD_LIMIT, output_size_limit=_FOLD_LIMIT)
    passes = ir.passes.Sequential(
        IdentityEliminationPass(),
        RemoveUnusedNodesPass(),
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        DeduplicateInitializersPass(size_limit=_FOLD_LIMIT),
        CommonSubexpressionEliminationPass(),
    )
    passes(model)
    if opset != OPSET:
        lower_to_opset_17(model)
    else:
        ShapeInferencePass()(model)
    _name(graph, before)
    for value, content in weights.items():
        graph.inputs.remove(value)
        value.const_value = content
        graph.register_initializer(value)
    model.functions.update((key, function) for key, function in others.items() if key[1] not in names)


def _decide_by_constants(graph: ir.Graph) -> None:
    """Makes constants of the conditions that constants alone decide; the folding below cannot compare strings."""
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


def _is_weight(value: ir.Value) -> bool:
    return value.const_value is not None and value.const_value.dtype.is_floating_point()


def _name(graph: ir.Graph, before: set[ir.Node]) -> None:
    """Names an inlined node `blocks.0.attn1/HeadNorm.RMSNormalization`, in the module of the node it stands for."""
    calls: dict[ir.Node, str | None] = {node: node.metadata_props.pop(_CALL, None) for node in graph}
    counts: Counter[str] = Counter()
    for node in graph:
        if node in before:
            continue
        sources = [calls.get(source) for source in node.predecessors()]
        targets = [calls.get(target) for target in node.successors()]
        # A node that the folding made has no mark; it belongs to the operator of its neighbours.
        calls[node] = calls[node] or next((call for call in (*sources, *targets) if call is not None), None)
        name = f"{calls[node]}.{node.op_type}"
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name] - 1}"
        for index, output in enumerate(node.outputs):
            if not output.is_graph_output():
                output.name = f"{node.name}_output_{index}"
