# SPDX-License-Identifier: Apache-2.0
"""The last stage of generation: latents -> frames, which may be taken while later ones are still decoded.

Some VAEs decode chunk by chunk. Their frames go to the host, and to whoever wants them, one chunk behind the GPU, so
that it never waits for that. With other ranks, each decodes some rows of every frame where the family's VAE allows it
(`vae_rows`), or some of the tiles (`vae_tiles`), and all get all of them.

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
OnFrames = Callable[[int, Frames], None]  # number of the video, its next frames


@torch.no_grad()
def decode(
    latents: Sequence[Tensor], parts: Parts, first: int = 0, on_frames: OnFrames | None = None
) -> Iterator[Frames]:
    """[1, C, F, H, W] each -> uint8 [F, H, W, 3], each as soon as it is decoded.

    Bit for bit what diffusers' pipeline makes of them with output_type="pt", rounded to 8 bits; but in bfloat16, where
    its scaling to colours is done in float32.

    Args:
        latents: Of every video.
        parts: What runs it.
        first: Number of the first of them.
        on_frames: Called with the next frames of a video, as soon as they are there.

    Raises:
        NonFiniteVideoError: Of latents before they are decoded, of frames once all are.
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
    """Takes the frames of one video as they are decoded."""

    def __init__(self, pipeline: Any, parts: Parts, number: int, on_frames: OnFrames | None) -> None:
        self._pipeline, self._parts, self._number, self._on_frames = pipeline, parts, number, on_frames
        self._split: RowSplit | None = None
        self._made = np.empty((*parts.planner.size, 3), np.uint8)  # room for all that there may be
        self._taken = 0  # frames that were asked for
        self._there = 0  # those on the host
        self._on_their_way: list[tuple[HostCopy, HostCopy]] = []  # frames, whether they are finite
        self._finite = True

    def decode(self, latents: Tensor) -> Frames:
        """All frames of latents [1, C, F, H, W] in the VAE's type and place."""
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
        return self._made[: self._there]  # some families leave out the frames of the image

    def _take(self, decoded: Tensor) -> None:
        """The next frames, [1, 3, F, H, W] as the VAE gives them; those before go on."""
        frames, height, width = self._parts.planner.size
        decoded = decoded[:, :, : frames - self._taken, :, :width]
        if not decoded.shape[2]:
            return
        self._taken += decoded.shape[2]
        if decoded.dtype == torch.bfloat16:  # as many bits as a frame has, so that its scaling would cost another one
            decoded = decoded.float()
        video = self._pipeline.video_processor.postprocess_video(decoded, output_type="pt")[0]  # [F, 3, H, W]
        rounded = (video.float() * 255).round().to(torch.uint8)
        if self._split is not None:
            rounded = self._split.whole(rounded)
        rounded = rounded[:, :, :height].permute(0, 2, 3, 1).contiguous()  # [F, H, W, 3]
        self._on_their_way.append((HostCopy(rounded), HostCopy(video.isfinite().all())))
        self._arrive(behind=1)

    def _arrive(self, behind: int) -> None:
        """Waits for all but the last chunks."""
        while len(self._on_their_way) > behind:
            frames, finite = self._on_their_way.pop(0)
            arrived = frames.wait().numpy()
            self._finite = self._finite and bool(finite.wait())
            place = self._made[self._there : self._there + len(arrived)]
            place[:] = arrived
            self._there += len(arrived)
            if self._on_frames is not None and self._finite:
                self._on_frames(self._number, place)
