# SPDX-License-Identifier: Apache-2.0
"""How many bytes of GPU memory text encoders, VAE and latents take, read from a bundle or a pipeline folder.

Estimates are marked as such.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vorta_trt.engines.bundle import Bundle
from vorta_trt.model.families import get_family
from vorta_trt.model.precision import BITS, PRECISIONS
from vorta_trt.runtime.engine_parts import Described

# Number of float32 copies of the latents during sampling: latents, noise, both predictions of guidance, a scheduler's
# history (UniPC: 3), and the samples that step caching keeps.
LATENT_COPIES = 10
PIXEL_COPIES = 2  # number of float32 copies of the pixels: zeros, and the image followed by zeros


@dataclass(frozen=True)
class PipelineParts:
    """Bytes of the parts of a pipeline other than the transformer. None stands for not given or unknown.

    Attributes:
        text_encoder: Weights of all text encoders in 16 bits, and of image encoders as stored.
        vae: Weights of the VAE as stored, or in the chosen precision.
        decoding: What the VAE needs in addition to decode one video, estimated from its widest layers, and the video
            itself. Encoding the images that a video begins with takes less.
    """

    text_encoder: int | None
    vae: int | None
    decoding: int | None


def sampling_bytes(model: Described | None) -> int:
    """Bytes of the latents and a scheduler's copies of them, for one video; or of its pixels, if those take more.

    Pixels count for pipelines that encode a video. They build the VAE's input (the image, then zeros) even if it was
    encoded before.
    """
    if model is None:
        return 0
    family = get_family(model.family)
    latents = LATENT_COPIES * 4 * math.prod(model.latent_shape)
    if not any(kind.encodes_video for kind in family.pipeline_kinds(model.config)):
        return latents
    pixels = math.prod(family.video_size(model.config, *model.latent_shape[1:]))
    return max(latents, PIXEL_COPIES * 3 * 4 * pixels)


def pipeline_parts(
    checkpoint: Path | None,
    model: Described | None,
    bundle: Bundle | None = None,
    vae_precision: str | None = None,
    compile_vae: bool = False,
) -> PipelineParts:
    """The sizes of a bundle's engines, and of the diffusers pipeline folder for parts without an engine.

    Args:
        checkpoint: The pipeline folder.
        model: Metadata or model of the transformer.
        bundle: The bundle, which may have engines of VAE and text encoders.
        vae_precision: Precision of a VAE in torch; None takes the family's.
        compile_vae: Whether a VAE in torch decodes compiled, which takes more.

    Raises:
        FileNotFoundError: Neither the folder nor the bundle has a text encoder or a VAE.
    """
    engines = PipelineParts(None, None, None) if bundle is None else _part_engines(bundle, model)
    if checkpoint is None or None not in (engines.text_encoder, engines.vae):
        return engines
    try:
        files = _folder_parts(checkpoint, model, vae_precision, compile_vae)
    except FileNotFoundError:
        if engines == PipelineParts(None, None, None):
            raise
        return engines
    return PipelineParts(
        files.text_encoder if engines.text_encoder is None else engines.text_encoder,
        files.vae if engines.vae is None else engines.vae,
        files.decoding if engines.decoding is None else engines.decoding,
    )


def _part_engines(bundle: Bundle, model: Described | None) -> PipelineParts:
    """Weights and activations of the engines as the builder states them; for a VAE also inputs and outputs, twice."""
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
    if decoding is not None and model is not None:
        sizes = get_family(model.family).video_size(model.config, *model.latent_shape[1:])
        decoding += 3 * 4 * math.prod(sizes)
    return PipelineParts(text, vae, decoding)


def holds_parts(checkpoint: Path) -> bool:
    """Whether a folder has a text encoder or a VAE with weights."""
    folders = [*checkpoint.glob("text_encoder*"), checkpoint / "vae"]
    return any(_weights(folder, None) is not None for folder in folders if folder.is_dir())


def _folder_parts(
    checkpoint: Path, model: Described | None, vae_precision: str | None, compile_vae: bool
) -> PipelineParts:
    """The sizes of the parts in a pipeline folder."""
    # Bytes per value: 2 for text encoders, as stored for image encoders.
    encoders = {"text_encoder*": 2, "image_encoder*": None}
    folders = [(folder, width) for name, width in encoders.items() for folder in sorted(checkpoint.glob(name))]
    text = [size for folder, width in folders if folder.is_dir() and (size := _weights(folder, width)) is not None]
    vae = _weights(checkpoint / "vae", None if vae_precision is None else BITS[PRECISIONS[vae_precision]] // 8)
    if not text and vae is None:
        raise FileNotFoundError(
            f"{checkpoint}: has neither text_encoder/ nor vae/ with weights; give the folder of a whole pipeline"
        )
    decoding = None
    config = checkpoint / "vae" / "config.json"
    if vae is not None and model is not None and config.is_file():
        decoding = _decoding(json.loads(config.read_text(encoding="utf-8")), model, vae_precision, compile_vae)
    return PipelineParts(sum(text) if text else None, vae, decoding)


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


def _decoding(config: Mapping[str, Any], model: Described, vae_precision: str | None, compile_vae: bool) -> int | None:
    """Bytes for decoding: the video in float32, and the tensors of the decoder's widest size that live at the peak.

    Their number (`decoding_tensors`) was measured for a family, or it is an estimate: three (a layer's input, its
    output, and a copy), and twice as many compiled. The result is None for VAEs whose widest tensor is unknown.
    """
    family = get_family(model.family)
    frames, height, width = family.video_size(model.config, *model.latent_shape[1:])
    widest = family.decoding_bytes(config, frames, height * width)  # bytes in the family's type
    if widest is not None and vae_precision is not None:
        widest = widest * BITS[PRECISIONS[vae_precision]] // BITS[family.vae_dtype]
    return None if widest is None else family.decoding_tensors[compile_vae] * widest + 3 * frames * height * width * 4
