# SPDX-License-Identifier: Apache-2.0
"""From a skeleton to an onnx_ir graph: torch.export, then torch's ONNX translation."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir
import torch
from torch import Tensor, nn

from vorta_trt.export.operator_node import translation_table
from vorta_trt.export.quiet_exporter import without_known_noise
from vorta_trt.model.constants import RANK_INPUTS

if TYPE_CHECKING:
    from vorta_trt.model import RoutedTransformer

OUTPUTS = ("sample", "routes")
BATCH = "batch"
UNBATCHED_INPUTS = ("tau", "route_override", *RANK_INPUTS)
_EXAMPLE_BATCH = 2  # torch takes a size of 1 for a constant


def trace(skeleton: RoutedTransformer, opset: int, stage: Callable[[str], None]) -> ir.Model:
    """The graph of a skeleton (see `skeleton_of`), with a dynamic batch.

    The parameters are graph inputs behind the model's own, until `weights.attach_weights` gives them values: so no pass
    over the graph can take a placeholder for a constant.

    Args:
        skeleton: The model with placeholders for its weights.
        opset: The version of ONNX's own operators.
        stage: Called with "trace" and "translate" as the work gets there.
    """
    inputs = skeleton.inputs(_EXAMPLE_BATCH)
    batch = torch.export.Dim(BATCH)
    shapes = {name: None if name in UNBATCHED_INPUTS else {0: batch} for name in inputs}
    with torch.no_grad(), without_known_noise():
        stage("trace")
        program = torch.export.export(skeleton, (), inputs, dynamic_shapes=shapes, strict=False)
        stage("translate")
        model = _translate(program, skeleton, list(inputs), OUTPUTS, opset)
    _add_inputs(model.graph, len(inputs), rank_inputs(skeleton))
    first_input = model.graph.inputs[0].shape
    assert first_input is not None
    _rename_dimension(model, str(first_input[0]), BATCH)
    return model


def rank_inputs(skeleton: nn.Module) -> dict[str, Tensor]:
    """Additional inputs of a model for several GPUs, which are buffers while it is traced; none for other models."""
    return {name: buffer for name, buffer in skeleton.named_buffers() if name in RANK_INPUTS}


def _add_inputs(graph: ir.Graph, position: int, buffers: Mapping[str, Tensor]) -> None:
    """Turns buffers into graph inputs, inserted at `position`."""
    for offset, name in enumerate(buffers):
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.insert(position + offset, value)


def trace_fixed(
    skeleton: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], opset: int, stage: Callable[[str], None]
) -> ir.Model:
    """The graph of a module with placeholders for its weights, with fixed shapes. Parameters are inputs as in `trace`.

    Args:
        skeleton: The module, whose `forward` takes the inputs in order.
        inputs: Example inputs, by name.
        outputs: Names of the outputs.
        opset: The version of ONNX's own operators.
        stage: Called with "trace" and "translate" when these stages begin.
    """
    with torch.no_grad(), without_known_noise():
        stage("trace")
        program = torch.export.export(skeleton, tuple(inputs.values()), strict=False)
        stage("translate")
        return _translate(program, skeleton, list(inputs), outputs, opset)


def _translate(
    program: torch.export.ExportedProgram, skeleton: nn.Module, inputs: list[str], outputs: Sequence[str], opset: int
) -> ir.Model:
    """Translates a traced program to a graph whose parameters are inputs after the program's own."""
    exported = torch.onnx.export(
        program,
        dynamo=True,
        custom_translation_table=translation_table(),
        opset_version=opset,
        input_names=inputs,
        output_names=list(outputs),
        optimize=False,
        verbose=False,
    )
    assert exported is not None
    graph = exported.model.graph
    for name, _ in skeleton.named_parameters(remove_duplicate=False):  # tied ones have several names
        if (value := graph.initializers.pop(name, None)) is not None:
            value.const_value = None
            graph.inputs.append(value)
    return exported.model


def _rename_dimension(model: ir.Model, old: str, new: str) -> None:
    """Renames a dimension wherever it occurs, also in expressions such as `2*s0`."""
    name = re.compile(rf"\b{re.escape(old)}\b")
    values = {*model.graph.inputs, *model.graph.outputs}
    for node in model.graph.all_nodes():
        values.update(node.outputs)
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape(
                name.sub(new, str(dim)) if isinstance(dim, ir.SymbolicDim) and dim.value is not None else dim
                for dim in value.shape
            )
