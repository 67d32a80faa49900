# SPDX-License-Identifier: Apache-2.0
"""ONNX file -> TensorRT network, and the check that the nodes of our operators became plugins.

RoutedAttention always becomes a plugin. Block operators become plugins or, in a build with native ones, the standard
operators that they stand for: then TensorRT parses a copy of the graph in which they are inlined.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vorta_trt.engines.errors import BuildError
from vorta_trt.engines.flavours import Flavour
from vorta_trt.engines.logs import is_noise
from vorta_trt.engines.manifest import ShapeRange, TensorSpec
from vorta_trt.engines.plugin import registered
from vorta_trt.export.native_operators import with_native_operators
from vorta_trt.export.onnx_file import OnnxFile, operator_nodes, read_onnx
from vorta_trt.model.precision import DATA_TYPES, PRECISIONS, TENSORRT_TYPES, DataType
from vorta_trt.plugins.operator_schema import (
    AROUND_BLOCKS,
    OPERATORS,
    PLUGIN_ATTRIBUTES,
    ROUTED_ATTENTION,
    BlockOps,
)

logger = logging.getLogger(__name__)

MOST_NAMES = 5


@dataclass
class ParsedNetwork:
    """The network and the objects that must outlive it: it borrows weights from the parser's mapped files.

    Attributes:
        network: TensorRT's `INetworkDefinition`.
        parser: TensorRT's `OnnxParser`.
        content: The serialized model that was parsed, in which weights may lie; None if TensorRT parsed the file.
        onnx: The ONNX file that was parsed; native block operators are inlined in its graph.
        plugin_layers: Layers of our plugins, by operator name.
        native: Number of inlined nodes, by operator name.
    """

    network: Any
    parser: Any
    content: bytes | None
    onnx: OnnxFile
    plugin_layers: dict[str, list[Any]]
    native: Counter[str]


def data_type(dtype: Any) -> DataType:
    """A TensorRT DataType as the manifest spells it."""
    return TENSORRT_TYPES[dtype.name]


def tensorrt_type(trt: Any, name: str) -> Any:
    """The member of `trt.DataType` for a data type."""
    return getattr(trt.DataType, DATA_TYPES[name].tensorrt)


def parse_onnx(flavour: Flavour, builder: Any, onnx: OnnxFile, block_ops: BlockOps | None = None) -> ParsedNetwork:
    """Parses the file into a network, strongly typed if TensorRT can.

    Args:
        flavour: Flavour whose parser is used.
        builder: TensorRT builder of that flavour.
        onnx: The file.
        block_ops: Form of the block operators, "plugin" or "native"; None takes the flavour's default.

    Raises:
        BuildError: The parser does not read the file's opset or reports errors (the message lists them by node name),
            an operator is unknown, or a node did not become a plugin layer.
    """
    trt = flavour.module
    if flavour.newest_opset is not None and onnx.opset > flavour.newest_opset:
        raise BuildError(
            f"{onnx.path}: is of opset {onnx.opset}, and {flavour.title} reads {flavour.newest_opset} at most; export "
            f"the model again with --opset {flavour.newest_opset} --precision {flavour.precisions[0]}"
        )
    for operator in onnx.block_operators:
        if operator not in OPERATORS:
            raise BuildError(
                f"{onnx.path}: has nodes {ROUTED_ATTENTION.namespace}::{operator}, and this vorta-trt has no such "
                "operator; update vorta-trt, or export the model again with this one"
            )
    network = builder.create_network(flavour.network_flags())
    parser = trt.OnnxParser(network, flavour.logger)
    native = Counter[str]()
    content: bytes | None = None
    with flavour.hub.collect() as collected:
        if (block_ops or flavour.block_ops) == "native" and onnx.block_operators:
            before, onnx = onnx.block_operators, _with_native(onnx)
            native = before - onnx.block_operators
            content = onnx.model.SerializeToString()
            onnx.model.graph.ClearField("initializer")  # the content has them, too
            parsed = parser.parse(content, str(onnx.place))
        else:
            parsed = parser.parse_from_file(str(onnx.place))
    errors = [_describe(parser.get_error(index)) for index in range(parser.num_errors)]
    if not parsed or errors:
        ours = [message for message in collected.errors if message.startswith(f"[{ROUTED_ATTENTION.namespace}::")]
        raise BuildError(
            f"{onnx.path}: {flavour.title_and_version} cannot import this model; {_remedy(flavour, onnx)}",
            ours + errors or collected.errors,
        )
    plugin_layers: dict[str, list[Any]] = defaultdict(list)
    for layer in layers(network):
        if (ours_of := operator_of(trt, layer)) is not None:
            plugin_layers[ours_of].append(layer)
    check_plugin_layers(flavour, onnx, plugin_layers)
    return ParsedNetwork(network, parser, content, onnx, dict(plugin_layers), native)


def _with_native(onnx: OnnxFile) -> OnnxFile:
    """Returns the file with block operators inlined in its graph; external weights stay in their files.

    A linear layer with fp8 products is inlined only if it has a static input scale. Without one it stays a plugin, and
    so does the operator that quantises its input.
    """
    whole = read_onnx(onnx.path).model  # the graph of `onnx` may lack its weights
    onnx.take_in_small_weights(whole)
    model = with_native_operators(whole, onnx.block_operators, _input_scales(onnx))
    return replace(onnx, model=model, operator_nodes=operator_nodes(onnx.path, model))


def _input_scales(onnx: OnnxFile) -> dict[str, float]:
    return {} if onnx.metadata is None else onnx.metadata.input_scales


def layers(network: Any) -> list[Any]:
    """Lists the layers of a network."""
    return [network.get_layer(index) for index in range(network.num_layers)]


def operator_of(trt: Any, layer: Any) -> str | None:
    """Name of our operator if a layer is one of our plugins; None for other plugins and for all other layers."""
    if layer.type == getattr(trt.LayerType, "PLUGIN_V3", None):
        layer.__class__ = trt.IPluginV3Layer  # TensorRT's way of narrowing an ILayer in Python
        core = layer.plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
        identity = (core.plugin_namespace, core.plugin_name, core.plugin_version)
    elif layer.type.name == "PLUGIN_V2" and hasattr(trt, "IPluginV2Layer"):  # TensorRT 8.6
        layer.__class__ = trt.IPluginV2Layer
        identity = (layer.plugin.plugin_namespace, layer.plugin.plugin_type, layer.plugin.plugin_version)
    else:
        return None
    namespace, name, version = map(str, identity)
    return name if (namespace, version) == (ROUTED_ATTENTION.namespace, ROUTED_ATTENTION.version) else None


def check_plugin_layers(flavour: Flavour, onnx: OnnxFile, plugin_layers: Mapping[str, Sequence[Any]]) -> None:
    """Raises BuildError unless every node of our operators has a plugin layer whose types the kernels take.

    Unless the node names the plugin, TensorRT silently takes the node's function body instead. Such an engine computes
    the slow reference, and the build would look like a success.
    """
    for operator in dict.fromkeys(node.operator for node in onnx.operator_nodes):
        _check_plugins_of(operator, flavour, onnx, plugin_layers.get(operator, ()))


def _check_plugins_of(operator: str, flavour: Flavour, onnx: OnnxFile, plugin_layers: Sequence[Any]) -> None:
    nodes = [node for node in onnx.operator_nodes if node.operator == operator]
    if len(plugin_layers) != len(nodes):
        made = {layer.name for layer in plugin_layers}
        lost = [node for node in nodes if node.name not in made] or nodes
        bare = [node for node in lost if not node.has_plugin_attributes]
        if bare and operator in onnx.function_bodies:
            why = (
                f"{_names(bare)} lack(s) the attributes {' and '.join(PLUGIN_ATTRIBUTES)}, so that TensorRT took the "
                "function body in the file instead of the plugin; export the model again with vorta-trt"
            )
        elif registered(flavour.module, operator) is None:
            why = (
                f"plugin {ROUTED_ATTENTION.namespace}::{operator} is not registered with {flavour.title}, so that "
                f"TensorRT took the function body in the file; {_missing(operator)}"
            )
        else:
            why = f"TensorRT imported {_names(lost)} as something else"
        raise BuildError(
            f"{onnx.path}: only {len(plugin_layers)} of {len(nodes)} {operator} nodes became plugin layers: {why}"
        )
    taken = [PRECISIONS[precision] for precision in flavour.precisions]
    stated = onnx.value_types() if flavour.weakly_typed else {}
    for layer in plugin_layers:
        tokens, result = layer.get_input(OPERATORS[operator].activation_input), layer.get_output(0)
        # If the input is a weight, a weakly typed network does not know its type; the result has the same type.
        dtype = stated.get(tokens.name, stated.get(result.name, data_type(tokens.dtype)))
        if dtype not in taken:
            raise BuildError(
                f"{onnx.path}: {layer.name} computes in {dtype}, and the kernels take {' and '.join(taken)} in "
                f"{flavour.title}; export the model with --precision {' or '.join(flavour.precisions)}"
            )


def _names(nodes: list[Any]) -> str:
    named = ", ".join(node.name for node in nodes[:MOST_NAMES])
    return named if len(nodes) <= MOST_NAMES else f"{named} and {len(nodes) - MOST_NAMES} more"


def _describe(error: Any) -> str:
    said = "\n".join(line for line in error.desc().splitlines() if not is_noise(line))
    if not hasattr(error, "node_name"):  # TensorRT 8.6 names the node in its description
        return f"node {error.node()}: {said} [{error.func()}]"
    node = error.node_name() or f"node {error.node()}"
    return f"{node} ({error.node_operator() or 'no operator'}): {said} [{error.func()}]"


def _remedy(flavour: Flavour, onnx: OnnxFile) -> str:
    for operator in dict.fromkeys(node.operator for node in onnx.operator_nodes):
        if registered(flavour.module, operator) is None:
            return f"plugin {ROUTED_ATTENTION.namespace}::{operator} is not registered: {_missing(operator)}"
    return "TensorRT names the node below; export the model again with vorta-trt"


def _missing(operator: str) -> str:
    """What to do about a plugin that is not registered."""
    if operator == ROUTED_ATTENTION.name:
        return "load libvorta_trt.so first"
    if operator in AROUND_BLOCKS:
        return "load libvorta_trt.so first, one that has it"
    return "load libvorta_trt.so first, one that has it, or build with --block-ops native"


def tensor_specs(network: Any, batch: tuple[int, int, int]) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs and outputs as the manifest lists them; inputs whose first dimension is dynamic get profile `batch`."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    specs = []
    for tensor in inputs:
        shape = list(tensor.shape)
        if -1 in shape[1:]:
            raise BuildError(
                f"input {tensor.name} {shape}: only the first dimension (batch) may be dynamic; export the model again "
                "with a fixed video size"
            )
        profile = None
        if shape and shape[0] == -1:
            profile = ShapeRange(**{k: [b, *shape[1:]] for k, b in zip(("min", "opt", "max"), batch, strict=True)})
        specs.append(TensorSpec(name=tensor.name, dtype=data_type(tensor.dtype), shape=shape, profile=profile))
    return specs, [
        TensorSpec(name=tensor.name, dtype=data_type(tensor.dtype), shape=list(tensor.shape)) for tensor in outputs
    ]


def add_profile(builder: Any, config: Any, inputs: list[TensorSpec]) -> None:
    """Adds the optimization profile of the inputs that have one."""
    if not any(spec.profile for spec in inputs):
        return
    profile = builder.create_optimization_profile()
    for spec in inputs:
        if spec.profile is not None:
            profile.set_shape(spec.name, spec.profile.min, spec.profile.opt, spec.profile.max)
    if config.add_optimization_profile(profile) < 0:
        raise BuildError(f"TensorRT refused the optimization profile {[spec.profile for spec in inputs]}")
