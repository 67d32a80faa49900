# SPDX-License-Identifier: Apache-2.0
"""From torch's raw graph to the one that is written: folded, named after the modules, no traces of this machine."""

from __future__ import annotations

import ast
import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import (
    ClearMetadataAndDocStringPass,
    CommonSubexpressionEliminationPass,
    DeduplicateInitializersPass,
    InlinePass,
    LiftConstantsToInitializersPass,
)
from onnxscript.optimizer import fold_constants_ir
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules.common import (
    materialize_reshape_shape_rule,
    mul_by_1_rule,
    no_op_cast_rule,
    no_op_expand_rule,
    no_op_transpose_rule,
    reshape_reshape_rule,
)

from vorta_trt.export.copies import remove_copies
from vorta_trt.export.names import OPSET_17, TRANSPOSED
from vorta_trt.export.opset17 import lower_to_opset_17
from vorta_trt.export.slices import simplify_slices
from vorta_trt.plugins.operator_schema import (
    RESIDUAL_NORM_MODULATE,
    RESIDUAL_NORM_MODULATE_QUANTIZE,
    ROUTED_ATTENTION,
    ROUTED_ATTENTIONS,
)

_SHAPES_OF_WEIGHTS = ("Reshape", "Pad")  # of the patch embedding's weight: the convolution is a product here
_SCOPES = "pkg.torch.onnx.name_scopes"
_FOLD_LIMIT = 1 << 16  # elements; tables such as the timestep's frequencies and the ones of a norm without weights
_RESIDUAL_NORMS = (RESIDUAL_NORM_MODULATE.node_type, RESIDUAL_NORM_MODULATE_QUANTIZE.node_type)
# The rules that change something in this graph. The full set finds nothing more, and takes minutes on 30 layers.
_RULES = (
    materialize_reshape_shape_rule,
    mul_by_1_rule,
    no_op_cast_rule,
    no_op_expand_rule,
    no_op_transpose_rule,
    reshape_reshape_rule,
)


def clean(model: ir.Model, opset: int) -> None:
    """Optimizes and names the graph in place, and lowers it to `opset`.

    Parameters are inputs (see `tracing.trace`), so none is folded.
    """
    graph = model.graph
    InlinePass()(model)
    for _ in range(2):  # after a rewrite, more may fold
        with _quiet_folding():
            fold_constants_ir(model, input_size_limit=_FOLD_LIMIT, output_size_limit=_FOLD_LIMIT)
        rewrite(model, _RULES)
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    DeduplicateInitializersPass(size_limit=_FOLD_LIMIT)(model)
    CommonSubexpressionEliminationPass()(model)
    simplify_slices(graph)
    remove_copies(graph)
    _transpose_weights(graph)
    _norms_in_float32(graph)
    if opset == OPSET_17:
        lower_to_opset_17(model)
    _remove_unused_constants(graph)
    _name_after_modules(graph)
    ClearMetadataAndDocStringPass()(model)  # torch leaves file names and source lines there
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
    graph.metadata_props.clear()
    graph.name = "vorta_trt"


@contextmanager
def _quiet_folding() -> Iterator[None]:
    """Hides what is no fault: operators that are not folded, and infinities that a Where leaves out later."""
    folding = logging.getLogger("onnxscript.optimizer")
    level = folding.level
    folding.setLevel(logging.ERROR)
    try:
        with np.errstate(divide="ignore", invalid="ignore"):
            yield
    finally:
        folding.setLevel(level)


def _remove_unused_constants(graph: ir.Graph) -> None:
    for name, constant in list(graph.initializers.items()):
        if not constant.uses() and not constant.is_graph_output():
            del graph.initializers[name]


def operator_nodes(graph: ir.Graph) -> list[ir.Node]:
    """The nodes of all our operators."""
    return [node for node in graph if node.domain == ROUTED_ATTENTION.namespace]


def routed_nodes(graph: ir.Graph) -> list[ir.Node]:
    """The `vorta::RoutedAttention` nodes, or `UlyssesAttention`, in the order of the layers."""
    return [node for node in operator_nodes(graph) if node.op_type in ROUTED_ATTENTIONS]


def _owner_of_weights(node: ir.Node, weights: set[ir.Value]) -> str:
    """Module that owns the weights of a node, if it is one of our operators or shapes weights; "" for other nodes.

    If the weights belong to several modules, it is the innermost module that contains all of these.
    """
    if node.domain != ROUTED_ATTENTION.namespace and node.op_type not in _SHAPES_OF_WEIGHTS:
        return ""
    owners = [str(value.name).split(".")[:-1] for value in node.inputs if value in weights]
    return ".".join(os.path.commonprefix(owners))


def _transpose_weights(graph: ir.Graph) -> None:
    """Replaces each transpose of a weight by an input for the transposed weight, named with the suffix `TRANSPOSED`.

    The weight is transposed when it is written, instead of by every runtime when it loads the model.
    """
    inputs = {value.name: value for value in graph.inputs}
    for node in list(graph):
        weight = node.inputs[0] if (node.domain, node.op_type) == ("", "Transpose") else None
        if weight is None or weight not in graph.inputs or weight.shape is None or len(weight.shape) != 2:
            continue
        name = f"{weight.name}{TRANSPOSED}"
        if name not in inputs:
            inputs[name] = ir.Value(name=name, shape=ir.Shape(reversed(weight.shape)), type=weight.type)
            graph.inputs.append(inputs[name])
        node.outputs[0].replace_all_uses_with(inputs[name])
        graph.remove(node, safe=True)
        if not weight.uses():
            graph.inputs.remove(weight)


def _norms_in_float32(graph: ir.Graph) -> None:
    """Puts casts around norms of half types. Torch computes them in float32 too; not every ONNX runtime would."""
    for node in list(graph):
        if (node.domain, node.op_type) not in {("", "RMSNormalization"), ("", "LayerNormalization")}:
            continue
        tokens, *parameters = (value for value in node.inputs if value is not None)  # a scale, and perhaps a bias
        normed = node.outputs[0]
        if tokens.dtype == ir.DataType.FLOAT:
            continue
        casts = [_cast(value, ir.DataType.FLOAT, node) for value in (tokens, *parameters)]
        exact = ir.node(node.op_type, [c.outputs[0] for c in casts], node.attributes)
        exact.metadata_props.update(node.metadata_props)
        exact.outputs[0].shape, exact.outputs[0].dtype = normed.shape, ir.DataType.FLOAT
        rounded = _cast(exact.outputs[0], tokens.dtype, node)
        new_nodes = [*casts, exact, rounded]
        ir.convenience.replace_nodes_and_values(graph, node, [node], new_nodes, [normed], rounded.outputs)


def _cast(value: ir.Value, dtype: ir.DataType | None, like: ir.Node) -> ir.Node:
    assert dtype is not None
    node = ir.node("Cast", [value], {"to": dtype})
    node.outputs[0].shape, node.outputs[0].dtype = value.shape, dtype
    node.metadata_props.update(like.metadata_props)
    return node


def _name_after_modules(graph: ir.Graph) -> None:
    """Names nodes `blocks.0.attn1.to_q/MatMul` and outputs `<node>_output_0`.

    The output of a block is named `blocks.0/output`. The result of the norm after it is named `blocks.0/normed` and, if
    that norm quantises, its scale `blocks.0/normed_scale`.

    Profilers, engine inspectors and error reports show these names.
    """
    modules: dict[ir.Node | None, str] = {None: ""}
    weights = {value for value in graph.inputs if "." in str(value.name)}  # see `tracing.trace`
    counts: Counter[str] = Counter()
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        if owner := _owner_of_weights(node, weights):
            modules[node] = owner
        elif scopes:  # ["", "blocks.0", "blocks.0.attn1.to_q", "linear_6"]
            modules[node] = scopes[-2] if len(scopes) > 1 else ""
        else:  # made by a rewrite, which kept no scope: counts to the module that it takes its input from
            modules[node] = next((modules[v.producer()] for v in node.inputs if v is not None and v.producer()), "")
        name = f"{modules[node]}/{node.op_type}"
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name] - 1}"
        for index, output in enumerate(node.outputs):
            if not output.is_graph_output():
                output.name = f"{node.name}_output_{index}"
    nodes = list(graph)
    for routed in routed_nodes(graph):
        block = modules[routed]
        inside = [node for node in nodes[nodes.index(routed) :] if f"{modules[node]}.".startswith(f"{block}.")]
        behind = set(inside)
        results, normed = [], []
        scales: list[ir.Value] = []
        for node in inside:
            leaving = [value for value in node.outputs if any(user not in behind for user, _ in value.uses())]
            if leaving and (node.domain, node.op_type) in _RESIDUAL_NORMS:
                results.append(node.outputs[0])
                normed.append(node.outputs[1])
                scales += node.outputs[2:]
            else:
                results += leaving
        # A dual-stream block has two of each.
        for values, name in ((results, "output"), (normed, "normed"), (scales, "normed_scale")):
            values = [value for value in values if not value.is_graph_output()]
            for index, value in enumerate(values):
                value.name = f"{block}/{name}" if len(values) == 1 else f"{block}/{name}_{index}"
