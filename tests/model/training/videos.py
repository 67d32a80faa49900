# SPDX-License-Identifier: Apache-2.0
"""Videos; the tests that import this are skipped without av."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

av = pytest.importorskip("av")


def write_video(file: Path, greys: Sequence[int], *, rate: int = 16, height: int = 64, width: int = 96) -> Path:
    """A video of grey frames, one per entry."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 4_000_000
        for grey in greys:
            picture = np.full((height, width, 3), grey, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return file
