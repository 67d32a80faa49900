# SPDX-License-Identifier: Apache-2.0
"""How many bytes of GPU memory each part of a video pipeline takes, as far as files tell; what is estimated says so.

The engine: from a bundle's manifest (the builder states weights and activations) or, before a build, from an ONNX file.
The rest: from the checkpoint's folder. Letters: S video tokens, T text tokens, E inner dimension, F feed-forward width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vorta_trt.engines.bundle import Bundle
from vorta_trt.engines.execution_flags import RESIZES, STREAMING
from vorta_trt.engines.inspect import inspect_onnx
from vorta_trt.export.metadata import ModelMetadata
from vorta_trt.export.names import OPSET_17
from vorta_trt.model.families import get_family
from vorta_trt.model.parallel.placement import check_ranks
from vorta_trt.model.precision import BITS, PRECISIONS
from vorta_trt.plugins.errors import VortaError
from vorta_trt.plugins.library import KERNEL_DTYPES, Problem, load_library
from vorta_trt.runtime.parallel.rates import PassWork
from vorta_trt.runtime.target import Target
from vorta_trt.runtime.tensors import TensorSpec, byte_size

UNBUILT_BATCH = 2  # the largest batch of an engine that `vorta-trt build` makes by default
# float32 copies of the latents during sampling: latents, noise, both predictions of guidance, a scheduler's history
# (UniPC: 3), what step caching keeps.
LATENT_COPIES = 10
PIXEL_COPIES = 2  # float32: zeros, and those behind the image


@dataclass(frozen=True)
class EngineParts:
    """Bytes of an engine.

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


@dataclass(frozen=True)
class PipelineParts:
    """Bytes of what stands around the transformer. None: not given, or unknown.

    Attributes:
        text_encoder: weights of all text encoders in 16 bits, and of image encoders as stored. vae: weights as stored.
        decoding: what the VAE needs to decode one video besides, estimated from its widest layers, and the video
        itself; encoding the images that a video begins with takes less.
    """

    text_encoder: int | None
    vae: int | None
    decoding: int | None


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
        workspace=None if metadata is None else _workspace(metadata, batch),
        largest_batch=batch,
        resizes=RESIZES in flags,
        streams=STREAMING in flags,
        can_stream=can_stream,
        built=target.bundle is not None,
        stated=stated is not None,
        io_per_sample=per_sample,
    )


def parts_of_rank(parts: EngineParts, metadata: ModelMetadata, ranks: int) -> EngineParts:
    """What each of several GPUs takes that share the tokens and heads of a pass; estimated from one GPU's figures.

    Weights are on every GPU. Activations are those of its tokens, the attention's workspace is that of its heads, and
    there are buffers for the exchange. Of an engine that is built for so many GPUs, the builder's figure has it all.

    Args:
        parts: On one GPU.
        metadata: Of the model.
        ranks: How many GPUs share a pass.

    Raises:
        ValueError: They cannot have the same number of heads.
    """
    check_ranks(metadata.num_heads, ranks)
    if ranks == 1:
        return parts
    work = PassWork.of(metadata)
    batch = parts.largest_batch
    workspace = None if parts.workspace is None else _workspace(metadata, batch, metadata.num_heads // ranks)
    of_tokens = max(0, parts.activations - (parts.workspace or 0)) * work.rows(ranks) // work.rows(1)
    exchange = batch * work.exchange_bytes(ranks)
    if metadata.ulysses == ranks and parts.stated:
        return replace(parts, workspace=workspace, exchange=exchange)
    return replace(
        parts,
        activations=of_tokens + (workspace or 0) + exchange,
        workspace=workspace,
        stated=False,
        exchange=exchange,
    )


def sampling_bytes(metadata: ModelMetadata | None) -> int:
    """Latents and what schedulers keep of them, for one video; or its pixels if more, of pipelines that encode them.

    Those make the video that the VAE would encode, the image and zeros, even if it was encoded before.
    """
    if metadata is None:
        return 0
    family = get_family(metadata.family)
    latents = LATENT_COPIES * 4 * math.prod(metadata.latent_shape)
    if not any(kind.encodes_video for kind in family.pipeline_kinds(metadata.config)):
        return latents
    pixels = math.prod(family.video_size(metadata.config, *metadata.latent_shape[1:]))
    return max(latents, PIXEL_COPIES * 3 * 4 * pixels)


def pipeline_parts(
    checkpoint: Path | None, metadata: ModelMetadata | None, bundle: Bundle | None = None
) -> PipelineParts:
    """The sizes that a bundle's engines tell, and for what is no engine a diffusers pipeline folder.

    Args:
        checkpoint: The pipeline folder.
        metadata: Of the transformer.
        bundle: Whose engines of VAE and text encoders count.

    Raises:
        FileNotFoundError: The folder has neither text encoder nor VAE, and nor has the bundle.
    """
    engines = PipelineParts(None, None, None) if bundle is None else _part_engines(bundle, metadata)
    if checkpoint is None or None not in (engines.text_encoder, engines.vae):
        return engines
    try:
        files = _folder_parts(checkpoint, metadata)
    except FileNotFoundError:
        if engines == PipelineParts(None, None, None):
            raise
        return engines
    return PipelineParts(
        files.text_encoder if engines.text_encoder is None else engines.text_encoder,
        files.vae if engines.vae is None else engines.vae,
        files.decoding if engines.decoding is None else engines.decoding,
    )


def _part_engines(bundle: Bundle, metadata: ModelMetadata | None) -> PipelineParts:
    """Weights and activations as the builder states them; of a VAE also inputs and outputs, twice."""
    text = vae = decoding = None
    for record in bundle.whole.parts:
        view = bundle.select(record.component, record.size)
        weights = record.engine.memory.weights or view.plan_bytes
        if record.config is None or not record.component.startswith("vae"):
            text = (text or 0) + weights
            continue
        vae = (vae or 0) + weights
        tensors = sum(math.prod(spec.shape) * BITS[spec.dtype] // 8 for spec in (*record.inputs, *record.outputs))
        decoding = max(decoding or 0, (record.engine.memory.activations or 0) + 2 * tensors)
    if decoding is not None and metadata is not None:
        sizes = get_family(metadata.family).video_size(metadata.config, *metadata.latent_shape[1:])
        decoding += 3 * 4 * math.prod(sizes)
    return PipelineParts(text, vae, decoding)


def _folder_parts(checkpoint: Path, metadata: ModelMetadata | None) -> PipelineParts:
    """The sizes that a pipeline folder tells."""
    # In 16 bits those of text, as stored those of images.
    encoders = {"text_encoder*": 2, "image_encoder*": None}
    folders = [(folder, width) for name, width in encoders.items() for folder in sorted(checkpoint.glob(name))]
    text = [size for folder, width in folders if folder.is_dir() and (size := _weights(folder, width)) is not None]
    vae = _weights(checkpoint / "vae", None)
    if not text and vae is None:
        raise FileNotFoundError(
            f"{checkpoint}: has neither text_encoder/ nor vae/ with weights; give the folder of a whole pipeline"
        )
    decoding = None
    config = checkpoint / "vae" / "config.json"
    if vae is not None and metadata is not None and config.is_file():
        decoding = _decoding(json.loads(config.read_text(encoding="utf-8")), metadata)
    return PipelineParts(sum(text) if text else None, vae, decoding)


def _sized(spec: TensorSpec) -> tuple[int, ...]:
    """The shape for one sample."""
    return tuple(1 if isinstance(size, str) else size for size in spec.shape)


def _activations_per_sample(metadata: ModelMetadata) -> int:
    """Where no builder has told: the plugin's workspace and 2 F + 7 E values for each of the S + T tokens.

    A fit from above: 0, 11 and 59 % over the builder's figures of TensorRT-RTX 1.7 for one block of models of 24, 40
    and 12 heads at their published sizes (10.7, 8.9 and 1.2 GB).
    """
    geometry, width = metadata.attention_geometry, metadata.num_heads * metadata.head_dim
    inner = get_family(metadata.family).feed_forward_width(metadata.config)
    tokens = math.prod(geometry.grid) + geometry.text_tokens
    return (2 * inner + 7 * width) * tokens * BITS[PRECISIONS[metadata.precision]] // 8 + (_workspace(metadata, 1) or 0)


def _workspace(metadata: ModelMetadata, batch: int, heads: int | None = None) -> int | None:
    """Bytes of one RoutedAttention layer, as the plugin library says; None where it cannot tell (fp32, no library).

    With all of the model's heads, or as many as are given.
    """
    geometry = metadata.attention_geometry
    dtype = PRECISIONS[metadata.precision]
    if dtype not in KERNEL_DTYPES:
        return None
    problem = Problem(
        dtype=dtype,
        batch=batch,
        heads=metadata.num_heads if heads is None else heads,
        head_dim=metadata.head_dim,
        **geometry.to_dict(),
        scale=0.0,
        attention_precision=metadata.attention_precision,
    )
    try:
        return load_library().workspace_size(problem)
    except VortaError:  # no library, or one without kernels for it: the figure is for information
        return None


def _weights(folder: Path, item_bytes: int | None) -> int | None:
    """Bytes of the weights in a folder, with `item_bytes` per value (None: as stored); None if there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickled = [file.stat().st_size for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern)]
        return sum(pickled) if pickled else None
    total = 0
    for file in files:
        for tensor in _header(file).values():
            start, end = tensor["data_offsets"]
            total += end - start if item_bytes is None else math.prod(tensor["shape"]) * item_bytes
    return total


def _header(file: Path) -> dict[str, Any]:
    """The tensors of a safetensors file: 8 bytes with the length of a JSON header, then the header."""
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        try:
            if length > file.stat().st_size:
                raise ValueError(f"its header would have {length} bytes")
            header: dict[str, Any] = json.loads(content.read(length))
        except ValueError as error:
            raise ValueError(f"{file}: not readable as safetensors ({error}); download the checkpoint again") from error
    header.pop("__metadata__", None)
    return header


def _decoding(config: Mapping[str, Any], metadata: ModelMetadata) -> int | None:
    """The video in float32, and three times the widest tensor of the decoder: its input, its output, and a copy.

    None for VAEs whose widest tensor is unknown.
    """
    family = get_family(metadata.family)
    frames, height, width = family.video_size(metadata.config, *metadata.latent_shape[1:])
    widest = family.decoding_bytes(config, frames, height * width)
    return None if widest is None else 3 * widest + 3 * frames * height * width * 4
