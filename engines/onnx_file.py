# SPDX-License-Identifier: Apache-2.0
"""What the builder must know of an ONNX file before TensorRT sees it; weights are not read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vorta_trt.export.errors import OnnxFileError
from vorta_trt.export.onnx_file import attention_precision_of, load_graph
from vorta_trt.plugins.operator_schema import PLUGIN_ATTRIBUTES, ROUTED_ATTENTION, AttentionPrecision

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class RoutedNode:
    """One RoutedAttention node, as often as the graph runs it."""

    name: str
    has_plugin_attributes: bool
    attention_precision: str


@dataclass(frozen=True)
class OnnxFile:
    """A checked ONNX file."""

    path: Path
    model: onnx.ModelProto  # without external weights
    routed_nodes: tuple[RoutedNode, ...]
    has_function_body: bool
    data_files: tuple[Path, ...]  # external weights

    @property
    def attention_precision(self) -> AttentionPrecision:
        """ "fp8" if any node permits it: then the kernels have to exist, and the numbers are less exact."""
        return "fp8" if any(node.attention_precision == "fp8" for node in self.routed_nodes) else "same"

    @property
    def total_bytes(self) -> int:
        return sum(path.stat().st_size for path in (self.path, *self.data_files))

    @property
    def is_portable(self) -> bool:
        """Whether it runs without the plugin; files of opset 17 do not."""
        return self.has_function_body or not self.routed_nodes

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return max((entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")), default=0)

    def value_types(self) -> dict[str, str]:
        """Types of the values of the main graph, by name, as far as the file states them."""
        from onnx.helper import tensor_dtype_to_np_dtype

        graph = self.model.graph
        stated = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
        return {name: tensor_dtype_to_np_dtype(number).name for name, number in stated.items() if number}


def read_onnx(path: Path) -> OnnxFile:
    """Reads the graph and checks that the external weights are there and long enough.

    Raises FileNotFoundError, or OnnxFileError for a file that is not ONNX, whose weights are cut short, or whose
    RoutedAttention nodes ask for a precision that does not exist.
    """
    model = load_graph(path)
    functions = {(function.domain, function.name): function for function in model.functions}
    return OnnxFile(
        path=path,
        model=model,
        routed_nodes=tuple(_routed_nodes(path, model.graph.node, functions)),
        has_function_body=ROUTED_ATTENTION.node_type in functions,
        data_files=tuple(_external_files(path, model)),
    )


def _routed_nodes(path: Path, nodes: Iterable[Any], functions: dict[tuple[str, str], Any]) -> Iterator[RoutedNode]:
    """The RoutedAttention nodes of a graph, its subgraphs, and the functions it calls (but not of their own body)."""
    for index, node in enumerate(nodes):
        if (node.domain, node.op_type) == ROUTED_ATTENTION.node_type:
            names = {attribute.name for attribute in node.attribute}
            yield RoutedNode(
                node.name or f"(unnamed node {index})",
                names.issuperset(PLUGIN_ATTRIBUTES),
                attention_precision_of(node, path),
            )
            continue
        if function := functions.get((node.domain, node.op_type)):
            yield from _routed_nodes(path, function.node, functions)
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _routed_nodes(path, subgraph.node, functions)


def _external_files(path: Path, model: onnx.ModelProto) -> list[Path]:
    """The files of external weights; OnnxFileError if one is missing, too short, or outside the model's folder."""
    needed: dict[str, int] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == tensor.EXTERNAL:
            entry = {item.key: item.value for item in tensor.external_data}
            end = int(entry.get("offset", 0)) + int(entry.get("length", 0))
            needed[entry["location"]] = max(end, needed.get(entry["location"], 0))
    files = []
    for location, end in needed.items():
        file = path.parent / location
        if Path(location).name != location:
            raise OnnxFileError(f"{path}: external weights {location!r} must lie beside the model; export it again")
        if not file.is_file():
            raise OnnxFileError(f"{path}: its weights {location} are missing; keep both files together")
        if (size := file.stat().st_size) < end:
            raise OnnxFileError(f"{file}: cut short, {size} bytes instead of {end}; copy or export it again")
        files.append(file)
    return files
