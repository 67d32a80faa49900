# SPDX-License-Identifier: Apache-2.0
"""A generated video on disk: H.264, or the frames as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from vorta_trt.model import files
from vorta_trt.runtime.frames import import_av
from vorta_trt.runtime.video_writer import SUFFIXES, VideoWriter

ARRAYS = ".npy"


def check_output(path: Path) -> None:
    """Raises what `write_frames` would raise, before anything is generated.

    Raises: ValueError, for another suffix; WriteError, where it cannot be written; VortaError, without av.
    """
    if path.suffix.lower() not in (*SUFFIXES, ARRAYS):
        raise ValueError(
            f"video {path}: its suffix must be one of {', '.join((*SUFFIXES, ARRAYS))}; use {path.stem}.mp4"
        )
    files.check_output(path)
    if path.suffix.lower() != ARRAYS:
        import_av()


def write_frames(path: Path, frames: npt.NDArray[np.uint8], frames_per_second: float) -> Path:
    """Writes uint8 [F, H, W, 3]; the file is there whole or not at all, and `vorta-trt compare` reads it.

    Args:
        path: .mp4, .mkv, .mov, or .npy, where nothing is lost and `frames_per_second` is not said.
    """
    check_output(path)
    if path.suffix.lower() == ARRAYS:
        with files.new_file(path) as unfinished, unfinished.open("wb") as file:  # np.save would add a suffix to a name
            np.save(file, frames)
        return path
    with VideoWriter(path, frames_per_second) as writer:
        for frame in frames:
            writer.write(frame)
    return path
