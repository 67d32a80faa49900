# SPDX-License-Identifier: Apache-2.0
"""The layers of a network as plain data: layers.json of a bundle, the tables of `inspect`, the picture."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from vorta_trt.engines.network import layers, operator_of
from vorta_trt.model.precision import BITS, TENSORRT_TYPES

CONSTANT = "CONSTANT"
UNKNOWN = "unknown"  # the type of a tensor that an ONNX file does not state

# TensorRT writes "[ONNX Layer: NAME]" into a layer's metadata, with " | CALLER" for the nodes of inlined functions.
_ONNX_LAYER = re.compile(r"\[ONNX Layer: (.*?)(?: \| .*?)?\]")
_PARAMETER = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*)\.(?:weight|bias|\w+_table)(?:\.\w+)?")


class Strict(BaseModel):
    """Base of the records in layers.json."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Tensor(Strict):
    """A tensor of the network, with its type and shape."""

    dtype: str
    shape: list[int]  # -1: dynamic

    @property
    def bytes(self) -> int:
        """Size in bytes, with every dynamic dimension taken as 1."""
        return math.prod(max(size, 1) for size in self.shape) * BITS.get(self.dtype, 0) // 8


class Layer(Strict):
    """A layer of the network, with the tensors that it reads and writes."""

    name: str
    kind: str  # TensorRT's LayerType, or the ONNX operator; for our plugins, the operator's name
    scope: str  # module path in the model, e.g. "blocks.3.attn1"; "" if unknown
    inputs: list[str]
    outputs: list[str]


class LayerGraph(Strict):
    """Layers in order of execution, and the tensors between them."""

    layers: list[Layer]
    tensors: dict[str, Tensor]

    def kinds(self) -> Counter[str]:
        """Number of layers of each kind."""
        return Counter(layer.kind for layer in self.layers)

    def dtypes(self) -> Counter[str]:
        """Number of layers that compute in each type (the type of their first output)."""
        return Counter(self.dtype(layer) for layer in self.layers if layer.kind != CONSTANT)

    def dtype(self, layer: Layer) -> str:
        """Gives the type that a layer computes in: that of its first output."""
        tensor = self.tensors.get(layer.outputs[0]) if layer.outputs else None
        return tensor.dtype if tensor else UNKNOWN

    def weight_bytes(self) -> int:
        """Bytes of all constants."""
        constants = (layer for layer in self.layers if layer.kind == CONSTANT)
        return sum(self.tensors[name].bytes for layer in constants for name in layer.outputs if name in self.tensors)


def from_network(trt: Any, network: Any) -> LayerGraph:
    """Reads a TensorRT network definition."""
    found: list[Layer] = []
    tensors: dict[str, Tensor] = {}
    for layer in layers(network):
        inputs = [tensor for index in range(layer.num_inputs) if (tensor := layer.get_input(index)) is not None]
        outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
        tensors |= {tensor.name: _tensor(tensor) for tensor in (*inputs, *outputs)}
        node = next(iter(onnx_nodes(layer.metadata)), layer.name)
        found.append(
            Layer(
                name=layer.name,
                kind=operator_of(trt, layer) or layer.type.name,
                scope=scope_of_name(node),
                inputs=[tensor.name for tensor in inputs],
                outputs=[tensor.name for tensor in outputs],
            )
        )
    return LayerGraph(layers=found, tensors=tensors)


def _tensor(tensor: Any) -> Tensor:
    # A shape that TensorRT cannot state before the build (unknown rank) raises ValueError on iteration.
    try:
        shape = list(tensor.shape)
    except ValueError:
        shape = []
    return Tensor(dtype=TENSORRT_TYPES.get(tensor.dtype.name, tensor.dtype.name.lower()), shape=shape)


def from_onnx(model: Any) -> LayerGraph:
    """Reads the main graph of an ONNX model; types and shapes as far as the file states them."""
    import onnx

    def named(data_type: int) -> str:
        name = str(onnx.TensorProto.DataType.Name(data_type)).lower()
        return {"float": "float32", "double": "float64"}.get(name, name)

    graph = model.graph
    tensors = {t.name: Tensor(dtype=named(t.data_type), shape=list(t.dims)) for t in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.HasField("tensor_type"):
            dims = value.type.tensor_type.shape.dim
            shape = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims]
            tensors[value.name] = Tensor(dtype=named(value.type.tensor_type.elem_type), shape=shape)
    constants = [
        Layer(name=t.name, kind=CONSTANT, scope=scope_of_name(t.name), inputs=[], outputs=[t.name])
        for t in graph.initializer
    ]
    nodes = [
        Layer(
            name=node.name,
            kind=node.op_type,
            scope=scope_of_name(node.name),
            inputs=[name for name in node.input if name],
            outputs=[name for name in node.output if name],
        )
        for node in graph.node
    ]
    return LayerGraph(layers=constants + nodes, tensors=tensors)


def engine_information(trt: Any, engine: Any) -> Any:
    """Asks TensorRT's inspector about a loaded engine.

    Args:
        trt: TensorRT's module.
        engine: The engine.

    Returns:
        Its description of kernels, formats and shapes; None from the lean and the dispatch runtime, whose bindings have
        no inspector (their `create_engine_inspector` raises TypeError).
    """
    if not hasattr(trt, "EngineInspector"):
        return None
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    return json.loads(text, strict=False)  # TensorRT 8.6 leaves control characters in names as they are


def onnx_nodes(metadata: str | None) -> list[str]:
    """The names of the ONNX nodes that a layer was made of, from the metadata that TensorRT keeps with it."""
    return _ONNX_LAYER.findall(metadata or "")


def scope_of_name(name: str) -> str:
    """Gives the module path in a name; "" for a name without one.

    Args:
        name: Name of a node ("blocks.3.attn1.to_q/MatMul", "/blocks.3/attn1/MatMul") or of a parameter
            ("blocks.3.attn1.to_q.weight").
    """
    if "/" in name:
        return ".".join(part for part in name.split("/")[:-1] if part)
    match = _PARAMETER.fullmatch(name)
    return match[1] if match else ""


def readable_bytes(count: int) -> str:
    """Formats a number of bytes: 1536 -> "1.5 KiB"."""
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"


def write_layers(graph: LayerGraph, path: Path) -> None:
    """Writes layers.json."""
    path.write_text(graph.model_dump_json() + "\n", encoding="utf-8")


def read_layers(path: Path) -> LayerGraph:
    """Reads layers.json. Raises ValueError if its content is no layer graph."""
    return LayerGraph.model_validate_json(path.read_text(encoding="utf-8"))
