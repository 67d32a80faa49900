# SPDX-License-Identifier: Apache-2.0
"""Reading an ONNX file: its graph, the nodes of our operators, its metadata, and where its weights lie.

Weights above 2 GB lie in a data file beside the model. Caches keep both behind links (Hugging Face's, `ln -s`,
`cp -l`), which onnx and ONNX Runtime refuse to follow; `OnnxFile` follows them.
"""

from __future__ import annotations

import glob
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vorta_trt.export.errors import OnnxFileError
from vorta_trt.export.metadata import KEY, ModelMetadata
from vorta_trt.export.names import component_file
from vorta_trt.export.part_metadata import PART_KEY, PartMetadata
from vorta_trt.model.constants import COMPONENTS
from vorta_trt.model.files import absence, refuse_pointer
from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.plugins.operator_schema import (
    AROUND_BLOCKS,
    FP8_LINEAR,
    PLUGIN_ATTRIBUTES,
    ROUTED_ATTENTION,
    ROUTED_ATTENTIONS,
    SAME_PRECISION,
    AttentionPrecision,
    LinearPrecision,
    choices,
)

if TYPE_CHECKING:
    import numpy.typing as npt
    import onnx

# TensorProto's number of a type -> bytes of an element, for types that take whole bytes.
ITEM_BYTES = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 16: 2, 17: 1}
SMALL = 64  # elements; a weight of at most so many may hold a shape
DATA_SUFFIX = ".data"  # suffix of the external data file: model.onnx.data beside model.onnx


@dataclass(frozen=True)
class RoutedAttentionNode:
    """A `vorta::RoutedAttention` node of the main graph.

    Attributes:
        name: Name of the node.
        geometry: Geometry of the attention.
        scale: Factor of the logits in the softmax; 0 stands for 1/sqrt(D).
        attention_precision: "same" or "fp8".
    """

    name: str
    geometry: AttentionGeometry
    scale: float
    attention_precision: AttentionPrecision = SAME_PRECISION


@dataclass(frozen=True)
class OperatorNode:
    """A node of one of our operators. A node in a function is listed once for every call of the function.

    Attributes:
        name: Name of the node.
        operator: Name of the operator.
        has_plugin_attributes: Whether the node has the attributes by which TensorRT finds the plugin.
        attention_precision: "same" or "fp8" for routed attention; "same" for all other operators.
    """

    name: str
    operator: str
    has_plugin_attributes: bool
    attention_precision: AttentionPrecision


@dataclass(frozen=True)
class OnnxFile:
    """A checked ONNX file.

    Attributes:
        path: Path of the file, as the caller gave it.
        place: Absolute path of the same file in the folder of its data files. If `path` is a link, this may be the file
            that it leads to.
        model: The model; external weights stay on disk.
        operator_nodes: All nodes of our operators, including those in subgraphs and functions.
        function_bodies: Names of the operators whose portable form the file holds.
        data_files: Files of external weights, under the names by which the model refers to them.
    """

    path: Path
    place: Path
    model: onnx.ModelProto
    operator_nodes: tuple[OperatorNode, ...]
    function_bodies: frozenset[str]
    data_files: tuple[Path, ...]

    @property
    def routed_nodes(self) -> tuple[OperatorNode, ...]:
        """The RoutedAttention nodes, or UlyssesAttention."""
        return tuple(node for node in self.operator_nodes if node.operator in ROUTED_ATTENTIONS)

    @property
    def block_operators(self) -> Counter[str]:
        """Number of nodes of every block operator."""
        operators = (node.operator for node in self.operator_nodes)
        return Counter(operator for operator in operators if operator not in AROUND_BLOCKS)

    @property
    def attention_precision(self) -> AttentionPrecision:
        """Is "fp8" if any node permits it: then the kernels have to exist, and the numbers are less exact."""
        return "fp8" if any(node.attention_precision == "fp8" for node in self.routed_nodes) else "same"

    @property
    def linear_precision(self) -> LinearPrecision:
        """Is "fp8" if there is a linear layer with fp8 products."""
        return "fp8" if FP8_LINEAR.name in self.block_operators else "same"

    @property
    def total_bytes(self) -> int:
        """Size of the file and its data files."""
        return sum(path.stat().st_size for path in (self.place, *self.data_files))

    @property
    def is_portable(self) -> bool:
        """Whether it runs without the plugin; files of opset 17 do not."""
        return self.function_bodies.issuperset(node.operator for node in self.operator_nodes)

    @property
    def opset(self) -> int:
        """Version of the standard operators."""
        return max((entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")), default=0)

    @property
    def metadata(self) -> ModelMetadata | None:
        """The exporter's record; None for a file of another origin. Raises OnnxFileError if the record is damaged."""
        properties = {entry.key: entry.value for entry in self.model.metadata_props}
        return ModelMetadata.from_metadata_props(properties, f"model {self.path}") if KEY in properties else None

    @property
    def part(self) -> PartMetadata | None:
        """The exporter's record of a VAE's or an encoder's graph; None for another file. OnnxFileError if damaged."""
        properties = {entry.key: entry.value for entry in self.model.metadata_props}
        is_part = PART_KEY in properties
        return PartMetadata.from_metadata_props(properties, f"model {self.path}") if is_part else None

    def value_types(self) -> dict[str, str]:
        """Types of the values of the main graph, by name, as far as the file states them."""
        from onnx.helper import tensor_dtype_to_np_dtype

        graph = self.model.graph
        stated = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
        return {name: tensor_dtype_to_np_dtype(number).name for name, number in stated.items() if number}

    def read_bytes(self, tensor: onnx.TensorProto) -> bytes:
        """The bytes of an initializer, read from the data file if they lie there."""
        from onnx import numpy_helper

        if tensor.data_location != tensor.EXTERNAL:
            return tensor.raw_data or numpy_helper.to_array(tensor).tobytes()
        name, offset, length = _external(self.path, tensor)
        with (self.place.parent / name).open("rb") as file:
            file.seek(offset)
            return file.read(length if length else -1)

    def read_weight(self, tensor: onnx.TensorProto) -> npt.NDArray[Any]:
        """The value of an initializer, read from the data file if it lies there."""
        from onnx import numpy_helper

        if tensor.data_location != tensor.EXTERNAL:
            return numpy_helper.to_array(tensor)
        whole = type(tensor)(dims=tensor.dims, data_type=tensor.data_type, name=tensor.name)
        whole.raw_data = self.read_bytes(tensor)
        return numpy_helper.to_array(whole)

    def load_weights(self) -> onnx.ModelProto:
        """The model with all weights in memory."""
        from onnx import numpy_helper

        for tensor in self.model.graph.initializer:
            if tensor.data_location == tensor.EXTERNAL:
                tensor.CopyFrom(numpy_helper.from_array(self.read_weight(tensor), tensor.name))
        return self.model

    def take_in_small_weights(self, model: onnx.ModelProto) -> None:
        """Reads small external weights, which may hold shapes, from the data file into a copy of the model."""
        from onnx import numpy_helper

        for tensor in model.graph.initializer:
            if tensor.data_location == tensor.EXTERNAL and math.prod(tensor.dims) <= SMALL:
                tensor.CopyFrom(numpy_helper.from_array(self.read_weight(tensor), tensor.name))

    def without_links(self) -> tuple[bytes, Path]:
        """The model with the real names of its data files, and the real folder of these.

        Small weights are in the model: ONNX Runtime infers shapes from them.

        Raises:
            OnnxFileError: links lead into several folders.
        """
        real = {file.name: file.resolve() for file in self.data_files}
        folders = {file.parent for file in real.values()}
        if len(folders) > 1:
            raise OnnxFileError(
                f"model {self.path}: its data files are links into several folders, {', '.join(map(str, folders))}; "
                f"put them into one"
            )
        model = type(self.model)()
        model.CopyFrom(self.model)
        self.take_in_small_weights(model)
        for tensor in model.graph.initializer:
            for item in tensor.external_data:
                if item.key == "location":
                    item.value = real[item.value].name
        return model.SerializeToString(), next(iter(folders), self.place.parent)


def data_file(path: Path) -> Path:
    """Where the exporter puts the external data of the model at `path`, if it has any."""
    return path.with_name(path.name + DATA_SUFFIX)


def read_onnx(path: str | os.PathLike[str]) -> OnnxFile:
    """Reads the graph and checks that the weights are there and whole.

    Raises:
        FileNotFoundError: there is no such file.
        OnnxFileError: not an ONNX file, a damaged one, weights that are missing or cut short, or RoutedAttention nodes
            that ask for a precision that does not exist.
    """
    path = Path(path)
    model = _load(path)
    external: dict[str, int] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location == tensor.EXTERNAL:
            name, offset, length = _external(path, tensor)
            external[name] = max(external.get(name, 0), offset + length)
    place = Path(os.path.abspath(path))
    if not _all_files(place.parent, external) and _all_files(place.resolve().parent, external):
        place = place.resolve()  # a link to a model whose data lies where the model does
    return OnnxFile(
        path=path,
        place=place,
        model=model,
        operator_nodes=operator_nodes(path, model),
        function_bodies=frozenset(
            function.name for function in model.functions if function.domain == ROUTED_ATTENTION.namespace
        ),
        data_files=tuple(_data_file(path, place.parent / name, end) for name, end in external.items()),
    )


def part_files(path: Path) -> dict[str, Path]:
    """Finds the exported VAE and text encoders beside a transformer's file, such as NAME.vae_decoder_first.onnx.

    Returns:
        The files by name of the graph.

    Raises:
        OnnxFileError: A file is damaged, or a graph of a part is missing.
    """
    found: dict[str, Path] = {}
    wanted: dict[str, str] = {}
    for file in sorted(path.parent.glob(f"{glob.escape(path.stem)}.*{path.suffix}")):
        graph = file.name[len(path.stem) + 1 : -len(path.suffix)]
        if "." in graph or graph in COMPONENTS:
            continue
        properties = {entry.key: entry.value for entry in _load(file).metadata_props}
        if PART_KEY in properties:
            found[graph] = file
            metadata = PartMetadata.from_metadata_props(properties, f"model {file}")
            wanted |= dict.fromkeys(metadata.graphs, metadata.part)
    if missing := [graph for graph in wanted if graph not in found]:
        raise OnnxFileError(
            f"{component_file(path, missing[0])}: does not exist, and is a graph of {wanted[missing[0]]} as those "
            f"beside {path}; keep them together, or export them again"
        )
    return {graph: found[graph] for graph in wanted}


def read_metadata(path: str | os.PathLike[str]) -> ModelMetadata:
    """Reads the exporter's record of a model.

    Raises:
        FileNotFoundError: there is no such file.
        OnnxFileError: not an ONNX file, damaged, or not exported by vorta-trt.
    """
    properties = {entry.key: entry.value for entry in _load(Path(path)).metadata_props}
    return ModelMetadata.from_metadata_props(properties, f"model {path}")


def routed_attention_nodes(path: str | os.PathLike[str]) -> list[RoutedAttentionNode]:
    """The routed self-attentions of a model, in the order of its layers. Raises as `read_metadata`."""
    import onnx

    nodes = []
    for node in _load(Path(path)).graph.node:
        if not _is_routed(node):
            continue
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        try:
            geometry = AttentionGeometry.from_attributes(attributes)
            scale = float(attributes.get("scale", 0.0))
        except (TypeError, ValueError) as error:
            raise OnnxFileError(f"model {path}: node {node.name}: {error}; export it again") from error
        nodes.append(RoutedAttentionNode(node.name, geometry, scale, _attention_precision(node, path)))
    return nodes


def _load(path: Path) -> onnx.ModelProto:
    """The model, external data left on disk."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if not path.is_file():
        there = absence(path, "does not exist")
        raise FileNotFoundError(f"model {path}: {there}; give an .onnx file, made with `vorta-trt export`")
    refuse_pointer(path, "model")
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except (DecodeError, UnicodeDecodeError) as error:
        raise OnnxFileError(
            f"model {path}: is not an ONNX file, or a damaged one ({error}); export it again"
        ) from error
    if not model.graph.node:
        raise OnnxFileError(
            f"model {path}: holds no graph, so it is not an ONNX file, or a damaged one; export it again"
        )
    _check_sizes(path, model)
    return model


def _check_sizes(path: Path, model: onnx.ModelProto) -> None:
    """Refuses weights that have more or fewer bytes than their shape needs."""
    for tensor in model.graph.initializer:
        needed = math.prod(tensor.dims) * ITEM_BYTES.get(tensor.data_type, 0)
        found = len(tensor.raw_data)
        if tensor.data_location == tensor.EXTERNAL:
            _, _, found = _external(path, tensor)
        if found and needed and found != needed:
            raise OnnxFileError(
                f"model {path}: weight {tensor.name} of shape {list(tensor.dims)} has {found} bytes instead of "
                f"{needed}; copy or export the file again"
            )


def _external(path: Path, tensor: onnx.TensorProto) -> tuple[str, int, int]:
    """Name of the data file, offset and length; a length of 0 means that the model does not state it."""
    entry = {item.key: item.value for item in tensor.external_data}
    try:
        name, offset, length = entry["location"], int(entry.get("offset", 0)), int(entry.get("length", 0))
    except (KeyError, ValueError) as error:
        raise OnnxFileError(
            f"model {path}: weight {tensor.name} says wrongly where it lies ({dict(entry)}); export it again"
        ) from error
    if Path(name).name != name or offset < 0 or length < 0:
        raise OnnxFileError(f"model {path}: external weights {name!r} must lie beside the model; export it again")
    return name, offset, length


def _all_files(folder: Path, names: Iterable[str]) -> bool:
    return all((folder / name).is_file() for name in names)


def _data_file(path: Path, file: Path, end: int) -> Path:
    """The file of external weights, checked; OnnxFileError if it is missing or too short."""
    if not file.is_file():
        what = f"are a link to {os.readlink(file)}, which is missing" if file.is_symlink() else "are missing"
        raise OnnxFileError(f"{path}: its weights {file.name} {what}; keep both files together")
    if (size := file.stat().st_size) < end:
        refuse_pointer(file, "weights")
        raise OnnxFileError(f"{file}: cut short, {size} bytes instead of {end}; copy or export it again")
    return file


def operator_nodes(path: Path, model: onnx.ModelProto) -> tuple[OperatorNode, ...]:
    """The nodes of our operators in a model that was read from `path`, subgraphs and functions included."""
    functions = {(function.domain, function.name): function for function in model.functions}
    return tuple(_operator_nodes(path, model.graph.node, functions))


def _operator_nodes(path: Path, nodes: Iterable[Any], functions: dict[tuple[str, str], Any]) -> Iterator[OperatorNode]:
    """Nodes of our operators in a graph, its subgraphs and its functions, except in our operators' own functions."""
    for index, node in enumerate(nodes):
        if node.domain == ROUTED_ATTENTION.namespace:
            yield OperatorNode(
                name=node.name or f"(unnamed node {index})",
                operator=node.op_type,
                has_plugin_attributes={attribute.name for attribute in node.attribute}.issuperset(PLUGIN_ATTRIBUTES),
                attention_precision=_attention_precision(node, path) if _is_routed(node) else SAME_PRECISION,
            )
            continue
        if function := functions.get((node.domain, node.op_type)):
            yield from _operator_nodes(path, function.node, functions)
        for attribute in node.attribute:
            for subgraph in (attribute.g, *attribute.graphs):
                yield from _operator_nodes(path, subgraph.node, functions)


def _is_routed(node: onnx.NodeProto) -> bool:
    return node.domain == ROUTED_ATTENTION.namespace and node.op_type in ROUTED_ATTENTIONS


def _attention_precision(node: onnx.NodeProto, path: str | os.PathLike[str]) -> AttentionPrecision:
    """The attention precision of a node; OnnxFileError for one that does not exist."""
    for attribute in node.attribute:
        if attribute.name == "attention_precision":
            value: Any = attribute.s.decode(errors="replace")
            if value not in choices("attention_precision"):
                known = " or ".join(map(repr, choices("attention_precision")))
                raise OnnxFileError(
                    f"model {path}: node {node.name}: attention_precision {value!r}: must be {known}; export it again"
                )
            return value  # type: ignore[no-any-return]
    return SAME_PRECISION
