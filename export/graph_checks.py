# SPDX-License-Identifier: Apache-2.0
"""Checks of every exported graph, made before anything is written."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import onnx
import onnx_ir as ir

from vorta_trt.export.errors import ExportError
from vorta_trt.export.graph_passes import operator_nodes, routed_nodes
from vorta_trt.export.metadata import ModelMetadata
from vorta_trt.export.names import OPSET_17
from vorta_trt.model.families import get_family
from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.plugins.operator_schema import (
    CROSS_ATTENTION,
    FP8_LINEAR,
    OPERATORS,
    ROUTED_ATTENTION,
    ULYSSES_ATTENTION,
)

_BUG = "a defect of the exporter, or a version of torch or onnxscript that does not fit it; please report it"
_SMALL_TABLE = 1024  # bytes, below which a second copy does not matter


def check_graph(model: ir.Model, metadata: ModelMetadata) -> None:
    """Raises ExportError unless the graph is complete and valid.

    Args:
        model: The model without weights: they still are graph inputs after the model's own (see `tracing.trace`).
        metadata: The record that the graph must agree with.
    """
    graph = model.graph
    _check_operator_nodes(graph, metadata)
    _check_interface("inputs", graph.inputs[: len(metadata.inputs)], metadata.inputs)
    _check_interface("outputs", graph.outputs, metadata.outputs)
    _check_no_other_attention(graph, metadata)
    _check_tables(graph)
    try:
        onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"onnx.checker refuses the exported graph: {error}; {_BUG}") from error


def _check_operator_nodes(graph: ir.Graph, metadata: ModelMetadata) -> None:
    foreign = {(node.domain, node.op_type) for node in graph if node.domain}
    foreign -= {operator.node_type for operator in OPERATORS.values()}
    if foreign:
        raise ExportError(f"operators {sorted(foreign)}: only {', '.join(OPERATORS)} may be outside of ONNX; {_BUG}")
    for node in operator_nodes(graph):
        wanted = OPERATORS[node.op_type].node_attributes
        if sorted(node.attributes) != sorted(wanted):
            raise ExportError(f"node {node.name} with attributes {sorted(node.attributes)}: must have {wanted}; {_BUG}")
    _check_routed_nodes(routed_nodes(graph), metadata)
    in_fp8 = sum(node.op_type == FP8_LINEAR.name for node in operator_nodes(graph))
    if in_fp8 != len(metadata.fp8_layers):
        raise ExportError(
            f"{in_fp8} {FP8_LINEAR.name} nodes: must be one for each of {len(metadata.fp8_layers)} layers; {_BUG}"
        )


def _check_routed_nodes(nodes: Sequence[ir.Node], metadata: ModelMetadata) -> None:
    wanted = ROUTED_ATTENTION if metadata.ulysses == 1 else ULYSSES_ATTENTION
    if len(nodes) != metadata.num_layers or any(node.op_type != wanted.name for node in nodes):
        raise ExportError(
            f"nodes {[node.op_type for node in nodes]}: must be one {wanted.name} per layer, {metadata.num_layers}; "
            f"{_BUG}"
        )
    for node in nodes:
        attributes: dict[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}
        if (ranks := attributes.get("ranks", 1)) != metadata.ulysses:
            raise ExportError(f"node {node.name} with ranks {ranks}: must have {metadata.ulysses}; {_BUG}")
        precision = attributes["attention_precision"]
        if precision != metadata.attention_precision:
            raise ExportError(
                f"node {node.name} with attention_precision {precision!r}: must have "
                f"{metadata.attention_precision!r}; {_BUG}"
            )
        geometry = AttentionGeometry.from_attributes(attributes)
        if geometry != metadata.attention_geometry:
            raise ExportError(f"node {node.name} with {geometry}: must have {metadata.attention_geometry}; {_BUG}")


def _check_interface(what: str, values: Sequence[ir.Value], expected: Sequence[Any]) -> None:
    found = [(value.name, _dtype(value), _shape(value)) for value in values]
    wanted = [(info.name, info.dtype, info.shape) for info in expected]
    if found != wanted:
        raise ExportError(f"{what} {found}: must be {wanted}; {_BUG}")


def _dtype(value: ir.Value) -> str:
    return str(value.dtype.numpy().name) if value.dtype is not None else "unknown"


def _shape(value: ir.Value) -> tuple[int | str, ...]:
    if value.shape is None:
        return ()
    return tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape)


def _check_no_other_attention(graph: ir.Graph, metadata: ModelMetadata) -> None:
    """Raises ExportError if there is more dense attention than the family has: some attention bypassed the operator."""
    allowed, rule = get_family(metadata.family).dense_attentions(metadata.config)
    kinds = {("", "Attention"), CROSS_ATTENTION.node_type}
    fused = [node.name for node in graph if (node.domain, node.op_type) in kinds]
    loose = [node.name for node in graph if node.op_type == "Softmax" and len(node.outputs[0].shape or ()) > 3]
    if metadata.opset == OPSET_17:  # it has no Attention: the softmaxes that stand for one are in one module
        fused, loose = [*fused, *sorted({str(name).rpartition("/")[0] for name in loose})], []
    if len(fused) > allowed or loose:
        raise ExportError(f"attention nodes {fused + loose}: at most {rule} may be; {_BUG}")


def _check_tables(graph: ir.Graph) -> None:
    """Raises ExportError if a constant, such as a rotary table, is stored twice."""
    seen: dict[bytes, str | None] = {}
    for value in graph.initializers.values():
        content = value.const_value
        if content is None or content.nbytes < _SMALL_TABLE:
            continue
        digest = hashlib.sha256(f"{content.dtype} {content.shape}".encode() + content.tobytes()).digest()
        if digest in seen:
            raise ExportError(f"initializers {seen[digest]} and {value.name}: hold the same table; {_BUG}")
        seen[digest] = value.name
