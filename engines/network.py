# SPDX-License-Identifier: Apache-2.0
"""ONNX file -> TensorRT network, and the check that every RoutedAttention node became our plugin."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from vorta_trt.engines.errors import BuildError
from vorta_trt.engines.flavours import Flavour
from vorta_trt.engines.logs import is_noise
from vorta_trt.engines.manifest import ShapeRange, TensorSpec
from vorta_trt.engines.plugin import registered
from vorta_trt.export.onnx_file import OnnxFile
from vorta_trt.model.precision import DATA_TYPES, PRECISIONS, TENSORRT_TYPES, DataType
from vorta_trt.plugins.operator_schema import PLUGIN_ATTRIBUTES, ROUTED_ATTENTION

logger = logging.getLogger(__name__)

MOST_NAMES = 5


@dataclass
class ParsedNetwork:
    """The network and the objects that must outlive it: it borrows weights from the parser's mapped files."""

    network: Any
    parser: Any
    plugin_layers: list[Any]


def data_type(dtype: Any) -> DataType:
    """A TensorRT DataType as the manifest spells it."""
    return TENSORRT_TYPES[dtype.name]


def tensorrt_type(trt: Any, name: str) -> Any:
    """The member of `trt.DataType` for a data type."""
    return getattr(trt.DataType, DATA_TYPES[name].tensorrt)


def parse_onnx(flavour: Flavour, builder: Any, onnx: OnnxFile) -> ParsedNetwork:
    """Parses the file into a network, strongly typed if TensorRT can.

    Raises BuildError with every parser error, by node name, and for a file of an opset that the parser does not know.
    """
    trt = flavour.module
    if flavour.newest_opset is not None and onnx.opset > flavour.newest_opset:
        raise BuildError(
            f"{onnx.path}: is of opset {onnx.opset}, and {flavour.title} reads {flavour.newest_opset} at most; export "
            f"the model again with --opset {flavour.newest_opset} --precision {flavour.precisions[0]}"
        )
    network = builder.create_network(flavour.network_flags())
    parser = trt.OnnxParser(network, flavour.logger)
    with flavour.hub.collect() as collected:
        parsed = parser.parse_from_file(str(onnx.place))
    errors = [_describe(parser.get_error(index)) for index in range(parser.num_errors)]
    if not parsed or errors:
        ours = [message for message in collected.errors if message.startswith(f"[{ROUTED_ATTENTION.namespace}::")]
        raise BuildError(
            f"{onnx.path}: {flavour.title} {flavour.version} cannot import this model; {_remedy(flavour, onnx)}",
            ours + errors or collected.errors,
        )
    plugin_layers = [layer for layer in layers(network) if is_routed_attention(trt, layer)]
    check_plugin_layers(flavour, onnx, plugin_layers)
    return ParsedNetwork(network, parser, plugin_layers)


def layers(network: Any) -> list[Any]:
    """Lists the layers of a network."""
    return [network.get_layer(index) for index in range(network.num_layers)]


def is_routed_attention(trt: Any, layer: Any) -> bool:
    """Whether a layer is our plugin and not somebody else's."""
    names = (ROUTED_ATTENTION.namespace, ROUTED_ATTENTION.name, ROUTED_ATTENTION.version)
    if layer.type == getattr(trt.LayerType, "PLUGIN_V3", None):
        layer.__class__ = trt.IPluginV3Layer  # TensorRT's way of narrowing an ILayer in Python
        core = layer.plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
        return (core.plugin_namespace, core.plugin_name, core.plugin_version) == names
    if layer.type.name == "PLUGIN_V2" and hasattr(trt, "IPluginV2Layer"):  # TensorRT 8.6
        layer.__class__ = trt.IPluginV2Layer
        plugin = layer.plugin
        return (plugin.plugin_namespace, plugin.plugin_type, plugin.plugin_version) == names
    return False


def check_plugin_layers(flavour: Flavour, onnx: OnnxFile, plugin_layers: list[Any]) -> None:
    """Raises BuildError unless there are as many plugin layers as RoutedAttention nodes, of types with kernels.

    TensorRT prefers a node's function body to a plugin unless the node names the plugin, and says nothing: such an
    engine computes the reference, slowly, and would look like a success.
    """
    if len(plugin_layers) != len(onnx.routed_nodes):
        made = {layer.name for layer in plugin_layers}
        lost = [node for node in onnx.routed_nodes if node.name not in made] or list(onnx.routed_nodes)
        bare = [node for node in lost if not node.has_plugin_attributes]
        if bare and onnx.has_function_body:
            why = (
                f"{_names(bare)} lack(s) the attributes {' and '.join(PLUGIN_ATTRIBUTES)}, so that TensorRT took the "
                "function body in the file instead of the plugin; export the model again with vorta-trt"
            )
        elif registered(flavour.module) is None:
            why = (
                f"plugin {ROUTED_ATTENTION} is not registered with {flavour.title}, so that "
                "TensorRT took the function body in the file; load libvorta_trt.so first"
            )
        else:
            why = f"TensorRT imported {_names(lost)} as something else"
        raise BuildError(
            f"{onnx.path}: only {len(plugin_layers)} of {len(onnx.routed_nodes)} RoutedAttention nodes became plugin "
            f"layers: {why}"
        )
    taken = [PRECISIONS[precision] for precision in flavour.precisions]
    stated = onnx.value_types() if flavour.weakly_typed else {}
    for layer in plugin_layers:
        query = layer.get_input(0)
        dtype = stated.get(query.name, data_type(query.dtype))
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
    if onnx.routed_nodes and registered(flavour.module) is None:
        return f"plugin {ROUTED_ATTENTION} is not registered: load libvorta_trt.so first"
    return "TensorRT names the node below; export the model again with vorta-trt"


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
