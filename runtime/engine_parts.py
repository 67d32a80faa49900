# SPDX-License-Identifier: Apache-2.0
"""How many bytes of GPU memory a transformer takes, on one GPU or on each of several; what is estimated says so.

An engine: from a bundle's manifest (the builder states weights and activations) or, before a build, from an ONNX file.
A model in torch: from its parameters. Letters: S video tokens, T text tokens, E inner dimension, F feed-forward width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from vorta_trt.engines.execution_flags import RESIZES, STREAMING
from vorta_trt.engines.inspect import inspect_onnx
from vorta_trt.export.metadata import ModelMetadata
from vorta_trt.export.names import OPSET_17
from vorta_trt.model.families import get_family
from vorta_trt.model.parallel.placement import check_ranks
from vorta_trt.model.transformer import RoutedTransformer
from vorta_trt.plugins.errors import VortaError
from vorta_trt.plugins.library import KERNEL_DTYPES, Problem, load_library
from vorta_trt.runtime.parallel.rates import PassWork
from vorta_trt.runtime.target import Target
from vorta_trt.runtime.tensors import TensorSpec, byte_size

UNBUILT_BATCH = 2  # the largest batch of an engine that `vorta-trt build` makes by default
Described = ModelMetadata | RoutedTransformer


@dataclass(frozen=True)
class EngineParts:
    """Bytes of an engine, or of a model in torch.

    Attributes:
        weights. activations: of one call of the largest batch, plugin workspace included. workspace: of that, the
        plugin's; None if unknown. largest_batch. resizes: smaller batches need less. streams: built with weight
        streaming. can_stream: the flavour has it. built: False for an ONNX file. stated: activations are the builder's
        figure, else an estimate. io_per_sample: of inputs and outputs. exchange: of the activations, buffers for
        exchanges with other GPUs.
    """

    weights: int
    activations: int
    workspace: int | None
    largest_batch: int
    resizes: bool
    streams: bool
    can_stream: bool
    built: bool
    stated: bool
    io_per_sample: int
    exchange: int = 0

    def activations_for(self, batch: int) -> int:
        """Bytes of activations for one batch size.

        They are in proportion to the batch, which is an upper bound: batch 1 takes 0.42 to 0.5 of batch 2 (the
        builder's figures of TensorRT-RTX 1.7 for one block of three published models).
        """
        return self.activations * batch // self.largest_batch if self.resizes else self.activations

    def tensors_for(self, batch: int) -> int:
        """Inputs and outputs in the engine's buffers, and the caller's copy of both."""
        return 2 * self.io_per_sample * batch


def engine_parts(target: Target) -> EngineParts:
    """The sizes that a bundle or an ONNX file tells."""
    per_sample = sum(byte_size(_sized(spec), spec.dtype) for spec in (*target.inputs, *target.outputs))
    metadata = target.metadata
    if target.bundle is None:
        weights = inspect_onnx(target.path).network.weight_bytes
        can_stream = metadata is None or metadata.opset != OPSET_17  # which is for TensorRT 8.6
        batch, flags, stated = UNBUILT_BATCH, [RESIZES] if can_stream else [], None
    else:
        engine = target.bundle.manifest.engine
        weights = engine.memory.weights or target.bundle.plan_bytes
        batch = max((spec.maximum[0] for spec in target.inputs if spec.maximum), default=1)
        flags, stated = engine.flags, engine.memory.activations
        can_stream = engine.flavour in ("rtx", "tensorrt")
    estimate = 0 if metadata is None else batch * _activations_per_sample(metadata)
    return EngineParts(
        weights=weights,
        activations=estimate if stated is None else stated,
        workspace=None if metadata is None else _workspace(PassWork.of(metadata), batch),
        largest_batch=batch,
        resizes=RESIZES in flags,
        streams=STREAMING in flags,
        can_stream=can_stream,
        built=target.bundle is not None,
        stated=stated is not None,
        io_per_sample=per_sample,
    )


def model_parts(model: RoutedTransformer, batch: int) -> EngineParts:
    """The sizes of a model in torch, whose weights may still be on disk, for calls of up to `batch` samples."""
    held = [*model.parameters(), *model.buffers()]
    sample = math.prod(get_family(model.family).sample_shape(model.config, PassWork.of(model).geometry.grid))
    inputs = model.inputs(1)
    return EngineParts(
        weights=sum(tensor.numel() * tensor.element_size() for tensor in held),
        activations=batch * _activations_per_sample(model),
        workspace=_workspace(PassWork.of(model), batch),
        largest_batch=batch,
        resizes=True,
        streams=False,
        can_stream=False,
        built=True,
        stated=False,
        io_per_sample=sum(tensor.nbytes for tensor in inputs.values()) + sample * model.dtype.itemsize,
    )


def parts_of_rank(parts: EngineParts, model: Described, ranks: int) -> EngineParts:
    """What each of several GPUs takes that share the tokens and heads of a pass; estimated from one GPU's figures.

    Weights are on every GPU. Activations are those of its tokens, the attention's workspace is that of its heads. What
    the exchanges need is freed before the feed forward begins, so the larger of both counts: beside the exchange's
    buffers, the attention holds the residual, queries, keys and values. Of an engine that is built for so many GPUs,
    the builder's figure has it all.

    Args:
        parts: On one GPU.
        model: What it is of.
        ranks: How many GPUs share a pass.

    Raises:
        ValueError: They cannot have the same number of heads.
    """
    work = PassWork.of(model)
    check_ranks(work.heads, ranks)
    if ranks == 1:
        return parts
    batch = parts.largest_batch
    workspace = None if parts.workspace is None else _workspace(work, batch, work.heads // ranks)
    exchange = batch * work.exchange_bytes(ranks)
    if isinstance(model, ModelMetadata) and model.ulysses == ranks and parts.stated:
        return replace(parts, workspace=workspace, exchange=exchange)
    of_tokens = max(0, parts.activations - (parts.workspace or 0)) * work.rows(ranks) // work.rows(1)
    attended = 4 * batch * work.rows(ranks) * work.width * work.element_bytes
    return replace(
        parts,
        activations=max(of_tokens, attended + exchange) + (workspace or 0),
        workspace=workspace,
        stated=False,
        exchange=exchange,
    )


def _sized(spec: TensorSpec) -> tuple[int, ...]:
    """The shape for one sample."""
    return tuple(1 if isinstance(size, str) else size for size in spec.shape)


def _activations_per_sample(model: Described) -> int:
    """Where no builder has told: the plugin's workspace and 2 F + 7 E values for each of the S + T tokens.

    A fit from above: 0, 11 and 59 % over the builder's figures of TensorRT-RTX 1.7 for one block of models of 24, 40
    and 12 heads at their published sizes (10.7, 8.9 and 1.2 GB).
    """
    work, inner = PassWork.of(model), get_family(model.family).feed_forward_width(model.config)
    return (2 * inner + 7 * work.width) * work.rows(1) * work.element_bytes + (_workspace(work, 1) or 0)


def _workspace(work: PassWork, batch: int, heads: int | None = None) -> int | None:
    """Bytes of one RoutedAttention layer, as the plugin library says; None where it cannot tell (fp32, no library).

    With all of the model's heads, or as many as are given.
    """
    if work.dtype not in KERNEL_DTYPES:
        return None
    problem = Problem(
        dtype=work.dtype,
        batch=batch,
        heads=work.heads if heads is None else heads,
        head_dim=work.head_dim,
        **work.geometry.to_dict(),
        scale=0.0,
        attention_precision=work.attention_precision,
    )
    try:
        return load_library().workspace_size(problem)
    except VortaError:  # no library, or one without kernels for it: the figure is for information
        return None
