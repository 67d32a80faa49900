# SPDX-License-Identifier: Apache-2.0
"""`prepare_data`: videos and captions -> the data folder of a training run, through the pipeline's own models.

Captions are encoded first, then videos, so that text encoder and VAE are not on the device together. Every file appears
whole or not at all; what is there already, of the same video, caption and size, is kept, so that an interrupted or
extended preparation does only what is missing.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any, get_args

import torch
from PIL import Image
from pydantic import BaseModel
from torch import Tensor

from vorta_trt.model.checkpoint import CheckpointError, CheckpointReader
from vorta_trt.model.families.training import TrainingFamily, check_trains, training_family
from vorta_trt.model.files import check_output, json_kind, make_folder, new_file, write_json
from vorta_trt.model.geometry import AttentionGeometry
from vorta_trt.model.images import FIRST
from vorta_trt.model.pipeline_folder import load_pipeline
from vorta_trt.model.precision import TrainingPrecision, torch_dtype
from vorta_trt.model.training.clips import Clip, find_clips, read_video
from vorta_trt.model.training.data import (
    DATASET_FILE,
    VERSION,
    DataError,
    PreparedFile,
    PreparedSample,
    Progress,
    check_finite,
    latent_file,
    prompt_file,
)
from vorta_trt.model.video_reader import import_av

logger = logging.getLogger(__name__)

KIND = json_kind("data of `vorta-trt train-router prepare`", "version", "family", "samples")


class PreparedData(BaseModel):
    """The result of a preparation.

    Attributes:
        output: The folder.
        samples: Names of its samples.
        kept_files: How many of their files were there already.
        skipped: Video -> why it was left out.
    """

    output: Path
    samples: tuple[str, ...]
    kept_files: int
    skipped: dict[str, str]

    def to_json(self) -> str:
        """Returns one JSON object."""
        return self.model_dump_json(indent=2)

    def summary(self) -> str:
        """Returns one line."""
        kept = f", {self.kept_files} of {2 * len(self.samples)} files were there already" if self.kept_files else ""
        skipped = f", {len(self.skipped)} videos skipped" if self.skipped else ""
        return f"{len(self.samples)} samples{kept}{skipped}"


@torch.no_grad()
def prepare_data(
    checkpoint: str | Path,
    videos: str | Path,
    output: str | Path,
    video_size: tuple[int, int, int],
    *,
    captions: str | Path | None = None,
    frames_per_second: float | None = None,
    precision: str = "bf16",
    device: str | None = None,
    skip_bad: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> PreparedData:
    """Makes a data folder, see `data.py`.

    Args:
        checkpoint: A diffusers pipeline folder with text encoder, tokenizer and VAE.
        videos: A folder of video files; a video's name without its suffix is the sample's name.
        output: The folder to make, or to complete.
        video_size: Frames, height, width in pixels, see `read_video`.
        captions: A JSON object, video file name -> caption; None reads <video>.txt beside every video.
        frames_per_second: Rate that frames are taken at; None is the model's own.
        precision: Precision of the text encoder, "bf16" or "fp32"; the VAE is always float32.
        device: Device of torch; None is the GPU if there is one.
        skip_bad: Leave out videos that cannot be used, instead of stopping at the first.
        progress: Called with (what, done, total).

    Raises:
        FileNotFoundError: A file or folder that is given does not exist.
        CheckpointError: The checkpoint is not what it should be.
        ValueError: Another argument is invalid.
        DataError: A video or caption cannot be used; the message names it.
        MissingExtraError: The package that decodes videos is not installed.
        WriteError: The folder cannot be written, or holds a dataset.json of another kind.
    """
    import_av()
    output = Path(output)
    with CheckpointReader(checkpoint) as reader:
        family = training_family(reader.family, reader.config)
    check_trains(family, checkpoint)
    geometry = AttentionGeometry.for_video(*video_size, family=family.facts.name, config=family.config)
    usual = family.facts.frame_rate(family.config)
    rate = usual if frames_per_second is None else frames_per_second
    if not 0 < rate < math.inf:
        raise ValueError(f"frames_per_second {rate}: must be positive and finite; use {usual:g}")
    if precision not in get_args(TrainingPrecision):
        raise ValueError(f"precision {precision!r}: must be {' or '.join(get_args(TrainingPrecision))}")
    bad: dict[str, str] = {}

    def refuse(video: str, reason: str) -> None:
        if not skip_bad:
            raise DataError(f"{reason}; mend it, or leave out what cannot be used with --skip-bad")
        logger.warning("skipped %s: %s", video, reason)
        bad[video] = reason

    clips = find_clips(Path(videos), None if captions is None else Path(captions), refuse)
    for folder in (output, output / "latents", output / "prompts"):
        make_folder(folder)
    check_output(output / DATASET_FILE, kind=KIND)

    progress("loading text encoder and VAE", 0, 0)
    pipeline = load_pipeline(Path(checkpoint), family.facts, family.config, torch_dtype(precision), purpose="preparing")
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    shape = family.facts.sample_shape(family.config, geometry.grid)
    kind = family.facts.pipeline_kinds(family.config)[0]

    def origin_of(clip: Clip) -> dict[str, str]:
        seen = "".join(f" {name}" for name in (*kind.images, *family.image_names))
        return {"video": f"{clip.video.name} {clip.video.stat().st_size} {video_size} {rate:g}{seen}"}

    def encode_caption(clip: Clip) -> bool:
        sees_image = bool(kind.images) and family.text_sees_image
        file, origin = prompt_file(output, clip.name), {"caption": clip.caption}
        if sees_image:
            origin |= origin_of(clip)
        if is_kept := _is_there(file, origin):
            return is_kept
        images = None
        if sees_image:
            first = read_video(clip.video, (1, *video_size[1:]), rate)  # [3, 1, H, W]
            images = {FIRST: _picture(first[:, 0])}
        tensors = family.encode_caption(pipeline, clip.caption, target, images)
        check_finite(family.conditions(tensors))
        _write(file, tensors, origin)
        return False

    def encode_video(clip: Clip) -> bool:
        file, origin = latent_file(output, clip.name), origin_of(clip)
        if is_kept := _is_there(file, origin):
            return is_kept
        video = read_video(clip.video, video_size, rate)  # [3, F, H, W]
        latents = _latents(pipeline.vae, family, video)  # [C, F, H, W]
        if tuple(latents.shape) != shape:
            raise CheckpointError(
                f"VAE: gives latents {tuple(latents.shape)} for a video of {video_size}, the transformer takes {shape} "
                f"[channels, frames, height, width]; VAE and transformer must be of one model"
            )
        ends = {FIRST: video[:, 0], "last_image": video[:, -1]}
        images = {name: _picture(ends[name]) for name in kind.images}
        of_images = family.condition(pipeline, images, video_size, target) if images else {}
        check_finite({"latents": latents, **of_images})
        _write(file, {"latents": latents, **of_images}, origin)
        return False

    kept = 0
    stages = (("captions", encode_caption, ("text_encoder",)), ("videos", encode_video, ("vae", "image_encoder")))
    for what, encode, parts in stages:
        models = [part for name, part in pipeline.components.items() if name.startswith(parts) and part is not None]
        for model in models:
            model.to(target)
        for index, clip in enumerate(clips):
            progress(f"encoding {what}", index, len(clips))
            try:
                kept += clip.video.name not in bad and encode(clip)
            except CheckpointError:
                raise
            except ValueError as error:  # DataError, too
                is_named = clip.video.name in str(error)
                refuse(clip.video.name, str(error) if is_named else f"{what[:-1]} of {clip.video.name}: {error}")
            except OSError as error:
                if not isinstance(error, FileNotFoundError):
                    raise
                refuse(clip.video.name, f"video {clip.video.name}: cannot be read any more ({error.strerror})")
        for model in models:
            model.to("cpu")
        if target.type == "cuda":
            torch.cuda.empty_cache()
    good = [clip for clip in clips if clip.video.name not in bad]
    if not good:
        raise DataError(f"videos {videos}: none of {len(bad)} can be used, first {next(iter(bad.values()))}")
    content = PreparedFile(
        version=VERSION,
        family=family.facts.name,
        video_size=video_size,
        samples=tuple(PreparedSample(name=clip.name, caption=clip.caption) for clip in good),
    )
    write_json(output / DATASET_FILE, content.model_dump(mode="json"))
    return PreparedData(output=output, samples=tuple(clip.name for clip in good), kept_files=kept, skipped=bad)


def _latents(vae: Any, family: TrainingFamily, video: Tensor) -> Tensor:
    """Encodes a video to the latents that the transformer denoises: float32 [3, F, H, W] -> [C, F, H, W]."""
    if family.facts.tiled_vae:
        vae.enable_tiling()
    encoded = vae.encode(video.unsqueeze(0).to(vae.device, vae.dtype)).latent_dist.mode()  # [1, C, F, H, W]
    latents: Tensor = family.facts.normalise(vae, encoded)[0]
    return latents


def _picture(frame: Tensor) -> Image.Image:
    """A frame float32 [3, H, W] from -1 to 1 as an image."""
    pixels = ((frame + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def _is_there(file: Path, origin: dict[str, str]) -> bool:
    """Whether the file was made from the same thing; a damaged one is made again."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            return bool(tensors.metadata() == origin)
    except (SafetensorError, OSError):
        return False


def _write(file: Path, tensors: dict[str, Tensor], origin: dict[str, str]) -> None:
    from safetensors.torch import save_file

    whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with new_file(file) as unfinished:
        save_file(whole, unfinished, metadata=origin)
