# SPDX-License-Identifier: Apache-2.0
"""The frames of a video file at the rate and size that a model is trained on.

Letters: F, H, W frames, height, width in pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vorta_trt.model.training.data import DataError
from vorta_trt.model.video_reader import VideoError, read_pictures

_EARLY = 1e-3  # seconds that a frame may start late: containers round times


def read_video(file: Path, size: tuple[int, int, int], frames_per_second: float) -> Tensor:
    """The first F frames at a rate, scaled to cover H x W and cropped around the centre.

    Where the file has another rate, each frame is the one on screen at its time.

    Args:
        size: F, H, W.

    Returns:
        float32 [3, F, H, W] in [-1, 1].

    Raises:
        DataError: no video, or too short.
    """
    count, height, width = size
    frames: list[Tensor] = []
    shown: Any = None  # the picture on screen
    ends = 0.0

    def append_until(time: float) -> None:
        while shown is not None and len(frames) < count and len(frames) / frames_per_second < time - _EARLY:
            frames.append(_cover(shown, height, width))  # [3, H, W]

    try:
        for picture in read_pictures(file):
            append_until(picture.start)
            if len(frames) == count:
                break
            shown, ends = picture.pixels, picture.end
    except VideoError as error:
        raise DataError(str(error)) from error
    append_until(ends)
    if len(frames) < count:
        raise DataError(
            f"{file} has {len(frames)} frames at {frames_per_second:g} per second, {count} are needed; use a "
            f"longer video, fewer frames in --size, or a higher --fps"
        )
    return torch.stack(frames, dim=1)  # [3, F, H, W]


def _cover(picture: Any, height: int, width: int) -> Tensor:
    """uint8 [h, w, 3] -> float32 [3, H, W] in [-1, 1]."""
    pixels = torch.from_numpy(picture).permute(2, 0, 1).unsqueeze(0).float() / 127.5 - 1  # [1, 3, h, w]
    scale = max(height / pixels.shape[2], width / pixels.shape[3])
    covering = [max(side, round(found * scale)) for side, found in zip((height, width), pixels.shape[2:], strict=True)]
    scaled = functional.interpolate(pixels, covering, mode="bicubic", antialias=True).clamp(-1, 1)  # [1, 3, >=H, >=W]
    top, left = (covering[0] - height) // 2, (covering[1] - width) // 2
    return scaled[0, :, top : top + height, left : left + width].contiguous()
