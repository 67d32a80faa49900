# SPDX-License-Identifier: Apache-2.0
"""How many bytes of GPU memory a transformer takes, on one GPU or on each of several. Estimates are marked as such.

The figures of an engine come from a bundle's manifest (where the builder states weights and activations) or, before a
build, from an ONNX file. Those of a model in torch come from its parameters.

Letters: S video tokens, T text tokens, E inner dimension, F feed-forward width.
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
    """Bytes of GPU memory that an engine, or a model in torch, takes.

    Attributes:
        weights: Bytes of the weights.
        activations: Bytes of activations of a call with the largest batch, including the plugin's workspace.
        workspace: The plugin's workspace, as a part of the activations; None if it is unknown.
        largest_batch: Largest batch of a call.
        resizes: Whether smaller batches need fewer activations.
        streams: Whether the engine was built with weight streaming.
        can_stream: Whether the TensorRT flavour supports weight streaming.
        built: Whether there is an engine or a model; False for an ONNX file.
        stated: Whether the activations are the builder's figure; otherwise they are an estimate.
        io_per_sample: Bytes of inputs and outputs for one sample.
        exchange: Buffers for exchanges with other GPUs, as a part of the activations.
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

        They are taken as proportional to the batch, which is an upper bound: batch 1 takes 0.42 to 0.5 of batch 2 (the
        builder's figures of TensorRT-RTX 1.7 for one block of three published models).
        """
        return self.activations * batch // self.largest_batch if self.resizes else self.activations

    def tensors_for(self, batch: int) -> int:
        """Bytes of inputs and outputs in the engine's buffers, and of the caller's copies."""
        return 2 * self.io_per_sample * batch


def engine_parts(target: Target) -> EngineParts:
    """The sizes of an engine, read from a bundle or estimated from an ONNX file."""
    per_sample = sum(byte_size(_sized(spec), spec.dtype) for spec in (*target.inputs, *target.outputs))
    metadata = target.metadata
    if target.bundle is None:
        weights = inspect_onnx(target.path).network.weight_bytes
        can_stream = metadata is None or metadata.opset != OPSET_17  # files of opset 17 are for TensorRT 8.6
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
    """The sizes on each of several GPUs that share the tokens and heads of a pass, estimated from those on one GPU.

    Every GPU has all weights, the activations of its own tokens, and the attention's workspace for its own heads. The
    buffers of the exchanges are freed before the feed forward begins, so the larger of two figures counts: that of the
    feed forward, or that of the attention, which holds the residual, queries, keys and values beside the buffers. If
    the engine is built for this number of GPUs, the builder's figure includes all of it.

    Args:
        parts: Sizes on one GPU.
        model: The model that the sizes belong to.
        ranks: Number of GPUs that share a pass.

    Raises:
        ValueError: The heads cannot be split evenly over the GPUs.
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
    """Estimate without a builder's figure: the plugin's workspace, and 2 F + 7 E values for each of the S + T tokens.

    It is fitted as an upper bound: 0, 11 and 59 % above the builder's figures of TensorRT-RTX 1.7 for one block of
    models with 24, 40 and 12 heads at their published sizes (10.7, 8.9 and 1.2 GB).
    """
    work, inner = PassWork.of(model), get_family(model.family).feed_forward_width(model.config)
    return (2 * inner + 7 * work.width) * work.rows(1) * work.element_bytes + (_workspace(work, 1) or 0)


def _workspace(work: PassWork, batch: int, heads: int | None = None) -> int | None:
    """Workspace bytes of one RoutedAttention layer, from the plugin library; None where it has none (fp32, no library).

    The layer has all heads of the model, or `heads` if that is given.
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
