# SPDX-License-Identifier: Apache-2.0
"""`export_onnx`: a routed transformer to one ONNX file for TensorRT and ONNX Runtime alike."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from vorta_trt.export.describe import describe
from vorta_trt.export.function_body import portable_function
from vorta_trt.export.graph_checks import check_graph
from vorta_trt.export.graph_passes import clean, operator_nodes
from vorta_trt.export.names import OPSET, OPSET_17, OPSETS, check_name
from vorta_trt.export.onnx_file import data_file
from vorta_trt.export.skeleton import precision_of, skeleton_of
from vorta_trt.export.tracing import trace
from vorta_trt.export.weights import attach_weights
from vorta_trt.model.files import check_output, check_space, new_file
from vorta_trt.model.parallel.rank_input import RankInput
from vorta_trt.plugins.operator_schema import OPERATORS

if TYPE_CHECKING:
    from vorta_trt.model import RoutedTransformer

logger = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with a stage and how much of it is done: ("trace" | "translate" | "optimize" | "check", 0, 1), ("write", bytes
done, bytes in all)."""

INLINE_LIMIT = 2 * 1000**3  # bytes of weights; a protobuf message ends at 2 GiB, tables and graph included
_INLINE_BELOW = 1024  # bytes; smaller constants stay in the .onnx file, where tools look for shapes


def export_onnx(
    model: RoutedTransformer,
    path: str | os.PathLike[str],
    precision: str | None = None,
    *,
    opset: int = OPSET,
    external_data: bool | None = None,
    ulysses: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Exports a routed transformer to ONNX.

    The file has one `vorta::RoutedAttention` node per layer, the block operators between them, the portable form of
    each operator, the router, and metadata (see `read_metadata`). Inputs: hidden_states [B, C, F, H, W], timestep
    float32 [B], the family's conditions (see `ModelFamily.inputs`), tau float32 [1], route_override int32 [L, N].
    Outputs: sample like hidden_states, routes int32 [L, B, N]. The batch B is dynamic, all else is fixed by the
    geometry; a mask, where there is one, says how many of the T text tokens count.

    Weights are read one by one as they are written, from the model or, for a model loaded with `materialize=False`,
    from its checkpoint; the export needs next to no memory of its own.

    Args:
        model: The model, which must have a geometry. It is not changed.
        path: The file, whose suffix must be .onnx; one that is there is replaced once the new one is complete.
        precision: "fp32", "fp16" or "bf16" of activations and most weights; None is the model's own. A float32 model
            can be exported in any of them. Norms, modulation, router and timestep path are float32 always, as in
            diffusers.
        opset: Opset of the standard operators: 23, or 17 for TensorRT 8.6, in "fp16" or "fp32". A file of opset 17 has
            no portable forms of our operators: ONNX Runtime does not run it; verify the model in opset 23.
        external_data: Whether the weights go into `<path>.data` beside the file. None: only if they are above 2 GB, the
            most that one file can hold.
        ulysses: Number of GPUs that share the tokens and heads of a pass. Above 1 the layers are
            `vorta::UlyssesAttention`, which exists only as a plugin of an engine. One file is for all ranks. `rank`
            int32 [1] and `head_orders` int32 [L, N] are inputs, too: rank p computes heads
            `head_orders[l, p * N / P : (p + 1) * N / P]` of layer l. Every rank takes the whole inputs and gives the
            whole outputs.
        progress: Callback; see `Progress`.

    Returns:
        `path`.

    Raises:
        ValueError: `path` has another suffix, or is a link to a file with another one; the model has no geometry, or
            weights that do not permit the precision; the opset is unknown; the weights are too large for one file; the
            number of GPUs does not divide the heads, or is above the latent frames of a model whose first frame and
            text have timesteps of their own.
        OSError: The destination cannot be written, or the disk is full. Nothing is left behind.
        ExportError: The exported graph is not as it must be.
    """
    path = Path(path)
    report = progress or _nothing
    check_name(path)
    if opset not in OPSETS:
        raise ValueError(
            f"opset {opset}: must be {OPSET}, whose RMSNormalization and Attention the graph uses, or {OPSET_17} for "
            "TensorRT 8.6; leave it out"
        )
    if model.geometry is None:
        raise ValueError(
            "model without a geometry: must have one, it fixes the video size; pass geometry= to "
            "RoutedTransformer.from_pretrained, e.g. AttentionGeometry.for_video(81, 480, 832)"
        )
    precision = precision_of(model, precision)
    if opset == OPSET_17 and precision == "bf16":
        raise ValueError(
            f"precision 'bf16' in opset {OPSET_17}: must be 'fp16' or 'fp32', TensorRT 8.6 has no bfloat16; export a "
            "model in float32 or float16 with precision='fp16'"
        )
    check_output(path)

    skeleton, weights = skeleton_of(model, precision)
    if ulysses != 1:
        RankInput.install(skeleton, ulysses)
    size = sum(weight.nbytes for weight in weights.values())
    if external_data is None:
        external_data = size > INLINE_LIMIT
    elif not external_data and size > INLINE_LIMIT:
        raise ValueError(
            f"external_data False with {size / 1e9:.1f} GB of weights: one ONNX file holds at most "
            f"{INLINE_LIMIT / 1e9:.0f} GB; use external_data=True"
        )
    check_space(path, size)
    metadata = describe(skeleton, model, precision, opset)
    graph = trace(skeleton, OPSET, lambda stage: report(stage, 0, 1))
    report("optimize", 0, 1)
    clean(graph, opset)
    if opset == OPSET:  # the functions are written in it
        portable = {node.op_type for node in operator_nodes(graph.graph) if OPERATORS[node.op_type].is_portable}
        for name in sorted(portable):
            function = ir.serde.deserialize_function(portable_function(name, text=model.geometry.text_tokens > 0))
            graph.functions[function.identifier()] = function
    graph.producer_name, graph.producer_version = "vorta-trt", metadata.vorta_trt_version
    graph.metadata_props.update(metadata.to_metadata_props())
    report("check", 0, 1)
    check_graph(graph, metadata)

    attach_weights(graph.graph, weights)
    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value is not None)
    with new_file(path, data_file(path).name, size=size) as stage:
        write_graph(graph, stage, size, external_data, report)
    logger.info("exported %s: %s, %.1f MB of weights", path, precision, size / 1e6)
    return path


def write_graph(model: ir.Model, stage: Path, size: int, external_data: bool, report: Progress) -> None:
    """Writes a graph whose weights are lazy, one after the other, into a new file and its data file."""
    written = 0

    def count(tensor: Any, info: Any) -> None:
        nonlocal written
        report("write", written, size)
        written += tensor.nbytes

    report("write", 0, size)
    try:
        if external_data:
            ir.save(
                model,
                stage,
                external_data=data_file(stage).name,
                size_threshold_bytes=_INLINE_BELOW,
                callback=count,
            )
        else:
            ir.save(model, stage)
    except ir.serde.SerdeError as error:  # it wraps whatever reading a weight raises, in a text of the whole graph
        raise _cause(error) from None
    report("write", size, size)


def _cause(error: BaseException) -> BaseException:
    """The original error inside of all the errors that onnx_ir wrapped around it."""
    while isinstance(error, ir.serde.SerdeError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _nothing(stage: str, done: int, total: int) -> None:
    pass
