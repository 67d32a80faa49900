# SPDX-License-Identifier: Apache-2.0
"""`export_part`: a graph of a VAE or a text encoder to an ONNX file of standard operators and fixed shapes."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from vorta_trt.export.errors import ExportError
from vorta_trt.export.graph_passes import clean
from vorta_trt.export.names import OPSET, check_name
from vorta_trt.export.onnx_export import INLINE_LIMIT, Progress, write_graph
from vorta_trt.export.onnx_file import data_file
from vorta_trt.export.opset17 import write_out_attention
from vorta_trt.export.part_metadata import PartMetadata
from vorta_trt.export.skeleton import Weight
from vorta_trt.export.tracing import trace_fixed
from vorta_trt.export.weights import attach_weights
from vorta_trt.model.families.parts import PartGraph
from vorta_trt.model.files import check_output, check_space, new_file

logger = logging.getLogger(__name__)


def export_part(part: PartGraph, path: Path, metadata: PartMetadata, progress: Progress | None = None) -> Path:
    """Exports a graph of a part.

    Args:
        part: The graph with its weights, in the types that they shall have in the file.
        path: The file, whose suffix must be .onnx; one that is there is replaced once the new one is complete.
        metadata: Record for the file, which also names the opset.
        progress: See `Progress`.

    Returns:
        `path`.

    Raises:
        ValueError: `path` has another suffix, or is a link to a file with another one.
        OSError: The destination cannot be written, or the disk is full. Nothing is left behind.
        ExportError: The graph has operators that are not standard ones, or another interface.
    """
    report = progress or (lambda *_: None)
    check_name(path)
    check_output(path)
    skeleton, weights = _skeleton(part.module)
    size = sum(parameter.nbytes for parameter in part.module.parameters())
    check_space(path, size)
    graph = trace_fixed(skeleton, part.inputs, part.outputs, OPSET, lambda stage: report(stage, 0, 1))
    report("optimize", 0, 1)
    if metadata.opset == OPSET:  # for opset 17, `clean` does it
        write_out_attention(graph)
    clean(graph, metadata.opset)
    for value in graph.graph.inputs[len(part.inputs) :]:  # parameters of layers that are left out
        if not value.uses():
            graph.graph.inputs.remove(value)
    _name_outputs(graph.graph, part.outputs)
    graph.producer_name, graph.producer_version = "vorta-trt", metadata.vorta_trt_version
    graph.metadata_props.update(metadata.to_metadata_props())
    report("check", 0, 1)
    _check(graph, part)
    attach_weights(graph.graph, weights)
    with new_file(path, data_file(path).name, size=size) as stage:
        write_graph(graph, stage, size, size > INLINE_LIMIT, report)
    logger.info("exported %s: %s, %.1f MB of weights", path, metadata.precision, size / 1e6)
    return path


def _skeleton(module: nn.Module) -> tuple[nn.Module, dict[str, Weight]]:
    """A copy of a module with placeholders for its parameters, and the parameters by name."""
    weights: dict[str, Weight] = {}
    replaced: dict[int, object] = {}  # memo of deepcopy: objects in it are not copied
    for name, parameter in module.named_parameters(remove_duplicate=False):  # tied ones have several names
        weights[name] = Weight(tuple(parameter.shape), parameter.dtype, _loader(parameter))
        placeholder = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
        replaced.setdefault(id(parameter), nn.Parameter(placeholder, requires_grad=False))
    return copy.deepcopy(module, replaced).eval(), weights


def _loader(parameter: Tensor) -> Callable[[], Tensor]:
    return lambda: parameter.detach().to("cpu")


def _name_outputs(graph: ir.Graph, names: Sequence[str]) -> None:
    """Names the outputs: folding leaves other names where an output is the same value as one inside of the graph."""
    seen: set[ir.Value] = set(graph.inputs)
    for index, (value, name) in enumerate(zip(graph.outputs, names, strict=True)):
        if value in seen:  # an input, or an output for the second time
            same = ir.node("Identity", [value], name=f"{name}/Identity")
            same.outputs[0].shape, same.outputs[0].type = value.shape, value.type
            graph.append(same)
            graph.outputs[index] = value = same.outputs[0]
        seen.add(value)
        value.name = name


def _check(model: ir.Model, part: PartGraph) -> None:
    graph = model.graph
    if foreign := sorted({node.op_type for node in graph.all_nodes() if node.domain}):
        raise ExportError(f"{part.name}: operators {foreign} are none of ONNX; please report it")
    inputs = [value.name for value in graph.inputs[: len(part.inputs)]]
    outputs = [value.name for value in graph.outputs]
    if inputs != list(part.inputs) or outputs != list(part.outputs):
        raise ExportError(f"{part.name}: has inputs {inputs} and outputs {outputs}; please report it")
    for value in (*graph.inputs[: len(part.inputs)], *graph.outputs):
        if value.shape is None or not value.shape.is_static():
            raise ExportError(
                f"{part.name}: {value.name} has the shape {value.shape}, not a fixed one; please report it"
            )
    try:
        onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"{part.name}: onnx.checker refuses the exported graph: {error}") from error
