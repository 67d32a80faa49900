# SPDX-License-Identifier: Apache-2.0
"""Looking into an exported ONNX file, without its external data and without running it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vorta_trt.export.errors import OnnxFileError
from vorta_trt.export.metadata import ModelMetadata
from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.plugins.operator_schema import ROUTED_ATTENTION, SAME_PRECISION, choices

if TYPE_CHECKING:
    import onnx

DATA_SUFFIX = ".data"  # of the external data file: model.onnx.data beside model.onnx


@dataclass(frozen=True)
class RoutedAttentionNode:
    """A `vorta::RoutedAttention` node: its name in the graph, geometry, softmax scale and attention precision."""

    name: str
    geometry: AttentionGeometry
    scale: float
    attention_precision: str = SAME_PRECISION


def data_file(path: Path) -> Path:
    """Where the external data of the model at `path` lies, if it has any."""
    return path.with_name(path.name + DATA_SUFFIX)


def read_metadata(path: str | os.PathLike[str]) -> ModelMetadata:
    """What the exporter wrote about a model.

    Raises:
        FileNotFoundError: there is no such file.
        OnnxFileError: not an ONNX file, damaged, or not exported by vorta-trt.
    """
    model = load_graph(path)
    return ModelMetadata.from_metadata_props({p.key: p.value for p in model.metadata_props}, f"model {path}")


def routed_attention_nodes(path: str | os.PathLike[str]) -> list[RoutedAttentionNode]:
    """The routed self-attentions of a model, in the order of its layers. Raises as `read_metadata`."""
    import onnx

    nodes = []
    for node in load_graph(path).graph.node:
        if (node.domain, node.op_type) != ROUTED_ATTENTION.node_type:
            continue
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        try:
            geometry = AttentionGeometry.from_attributes(attributes)
        except (TypeError, ValueError) as error:
            raise OnnxFileError(f"model {path}: node {node.name}: {error}; export it again") from error
        scale = float(attributes.get("scale", 0.0))
        nodes.append(RoutedAttentionNode(node.name, geometry, scale, attention_precision_of(node, path)))
    return nodes


def attention_precision_of(node: onnx.NodeProto, path: str | os.PathLike[str]) -> str:
    """The attention precision of a `vorta::RoutedAttention` node; OnnxFileError for one that does not exist."""
    for attribute in node.attribute:
        if attribute.name == "attention_precision":
            value: str = attribute.s.decode(errors="replace")
            if value not in choices("attention_precision"):
                known = " or ".join(map(repr, choices("attention_precision")))
                raise OnnxFileError(
                    f"model {path}: node {node.name}: attention_precision {value!r}: must be {known}; export it again"
                )
            return value
    return SAME_PRECISION


def load_graph(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """The model, external data left on disk. Raises as `read_metadata`, but accepts any ONNX model."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(f"model {path}: {what}; give an .onnx file, made with `vorta-trt export`")
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise OnnxFileError(
            f"model {path}: is not an ONNX file, or a damaged one ({error}); export it again"
        ) from error
    if not model.graph.node:
        raise OnnxFileError(
            f"model {path}: holds no graph, so it is not an ONNX file, or a damaged one; export it again"
        )
    return model
