# SPDX-License-Identifier: Apache-2.0
"""The picture that stands for a video in lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

WIDTH = 320


def write_thumbnail(path: Path, frames: npt.NDArray[np.uint8]) -> None:
    """Writes the frame in the middle of a video as WebP.

    Args:
        path: The file.
        frames: [F, H, W, 3].
    """
    picture = Image.fromarray(frames[len(frames) // 2])
    picture.thumbnail((WIDTH, WIDTH))
    picture.save(path, "WEBP", quality=80)
