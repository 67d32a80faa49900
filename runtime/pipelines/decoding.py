# SPDX-License-Identifier: Apache-2.0
"""The last stage of generation: decodes latents to frames. Frames are available while later ones are still decoded.

Some VAEs decode chunk by chunk. Their frames are copied to the host, and given to the callback, one chunk behind the
GPU, so the GPU never waits for the copy. With several ranks, each rank decodes some rows of every frame where the
family's VAE allows it (`vae_rows`), or some of the tiles (`vae_tiles`), and all ranks get the complete frames.

Letters: C channels, F, H, W frames, height, width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vorta_trt.model.families import get_family
from vorta_trt.model.parallel.groups import EVERYONE
from vorta_trt.model.parallel.vae_rows import ROWS, RowSplit, decoding_rows
from vorta_trt.model.parallel.vae_tiles import decode_in_tiles, shapes_of
from vorta_trt.model.precision import dtype_name
from vorta_trt.runtime.pipelines.stages import Parts
from vorta_trt.runtime.sampling.finite import HostCopy, NonFiniteVideoError

Frames = npt.NDArray[np.uint8]  # [F, H, W, 3]
OnFrames = Callable[[int, Frames], None]  # (number of the video, its next frames)


@torch.no_grad()
def decode(
    latents: Sequence[Tensor], parts: Parts, first: int = 0, on_frames: OnFrames | None = None
) -> Iterator[Frames]:
    """Decodes latents [1, C, F, H, W] to frames, uint8 [F, H, W, 3]; yields each video as soon as it is decoded.

    Frames equal bit for bit those of diffusers' pipeline with output_type="pt", rounded to 8 bits. The exception is
    bfloat16, where the scaling to colours is done in float32 here.

    Args:
        latents: Latents of each video.
        parts: The parts of the pipeline that run it.
        first: Number of the first video.
        on_frames: Called with a video's number and its next frames as soon as they are on the host.

    Raises:
        NonFiniteVideoError: Latents are not finite, which is checked before they are decoded; or frames are not, which
            is checked when the whole video is decoded.
    """
    with parts.decoding() as (pipeline, device):
        for number, sample in enumerate(latents):
            parts.on_stage("decoding", number, len(latents))
            if not bool(sample.isfinite().all()):
                raise NonFiniteVideoError(
                    "the latents have values that are not finite, though the transformer's output had none: guidance "
                    "or schedule overflow; use smaller guidance scales, or other steps"
                )
            video = _Video(pipeline, parts, first + number, on_frames)
            yield video.decode(sample.to(device, pipeline.vae.dtype))


class _Video:
    """Collects the frames of one video on the host while they are decoded."""

    def __init__(self, pipeline: Any, parts: Parts, number: int, on_frames: OnFrames | None) -> None:
        self._pipeline, self._parts, self._number, self._on_frames = pipeline, parts, number, on_frames
        self._split: RowSplit | None = None
        self._made = np.empty((*parts.planner.size, 3), np.uint8)  # room for all frames that there may be
        self._taken = 0  # frames that were decoded and whose copy to the host has begun
        self._there = 0  # frames that have arrived on the host
        self._on_their_way: list[tuple[HostCopy, HostCopy]] = []  # frames, whether they are finite
        self._finite = True

    def decode(self, latents: Tensor) -> Frames:
        """Decodes all frames of latents [1, C, F, H, W], which are in the VAE's type and on its device."""
        family, config, vae = get_family(self._parts.planner.family), self._parts.planner.config, self._pipeline.vae
        whole, in_chunks = self._parts.decodes_whole(vae), False
        with ExitStack() as stack:
            if whole and self._parts.ranks is not None and family.vae_needs_all_rows is not None:
                self._split = self._parts.ranks.rows(latents.shape[ROWS])
                stack.enter_context(decoding_rows(vae.decoder, self._split, family.vae_needs_all_rows))
                latents = self._split.own(latents)
            if self._parts.decodes_chunks:
                in_chunks = True
                hook = vae.decoder.register_forward_hook(
                    lambda module, given, chunk: self._take(family.frames_of_chunk(vae, chunk))
                )
                stack.callback(hook.remove)
            ranks = self._parts.ranks
            if ranks is not None and self._split is None and self._parts.decodes_tiles(vae):
                shape_of = shapes_of(vae.config.out_channels, *family.compression(config))
                decoded = decode_in_tiles(vae, lambda: family.decode(config, vae, latents), shape_of, EVERYONE)
            else:
                decoded = family.decode(config, vae, latents)
        if not in_chunks:
            self._take(decoded)
        self._arrive(behind=0)
        if not self._finite:
            raise NonFiniteVideoError(
                "the decoded video has values that are not finite, though the latents were: the VAE overflows in "
                f"{dtype_name(self._pipeline.vae.dtype)}; decode in another precision (vae_precision)"
            )
        return self._made[: self._there]  # fewer frames for families that leave out those of the given image

    def _take(self, decoded: Tensor) -> None:
        """Starts to copy the next decoded frames [1, 3, F, H, W] to the host, and hands on those of the last chunk."""
        frames, height, width = self._parts.planner.size
        decoded = decoded[:, :, : frames - self._taken, :, :width]
        if not decoded.shape[2]:
            return
        self._taken += decoded.shape[2]
        if decoded.dtype == torch.bfloat16:  # has 8 significant bits, as many as a colour: scaling would lose one
            decoded = decoded.float()
        video = self._pipeline.video_processor.postprocess_video(decoded, output_type="pt")[0]  # [F, 3, H, W]
        rounded = (video.float() * 255).round().to(torch.uint8)
        if self._split is not None:
            rounded = self._split.whole(rounded)
        rounded = rounded[:, :, :height].permute(0, 2, 3, 1).contiguous()  # [F, H, W, 3]
        self._on_their_way.append((HostCopy(rounded), HostCopy(video.isfinite().all())))
        self._arrive(behind=1)

    def _arrive(self, behind: int) -> None:
        """Waits for the copies of all chunks but the last `behind`, and hands their frames on."""
        while len(self._on_their_way) > behind:
            frames, finite = self._on_their_way.pop(0)
            arrived = frames.wait().numpy()
            self._finite = self._finite and bool(finite.wait())
            place = self._made[self._there : self._there + len(arrived)]
            place[:] = arrived
            self._there += len(arrived)
            if self._on_frames is not None and self._finite:
                self._on_frames(self._number, place)
