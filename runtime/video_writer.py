# SPDX-License-Identifier: Apache-2.0
"""`VideoWriter`: frames -> H.264. The file is there whole or not at all."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from vorta_trt.model.files import new_file
from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime.frames import import_av

CODEC, QUALITY = "libx264", "16"  # constant rate factor; 18 counts as visually lossless
SUFFIXES = (".mkv", ".mov", ".mp4")


class VideoWriter:
    """A context manager. The file appears under its name when the `with` block ends without an error; otherwise nothing
    is left of it.

    Args:
        path: suffix .mkv, .mov or .mp4; its folder must exist. rate: frames per second.

    Raises:
        ValueError: another suffix, or a rate that is not positive. VortaError: av is not installed or lacks H.264.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, rate: float) -> None:
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"video {path}: its suffix must be one of {', '.join(SUFFIXES)}; use {path.stem}.mp4")
        if not 0 < rate < 1000:
            raise ValueError(f"fps {rate}: must be positive and below 1000; use 16")
        self._av = import_av()
        if CODEC not in self._av.codecs_available:
            raise VortaError(f"av {self._av.__version__} lacks the encoder {CODEC}; install av from PyPI")
        self._file = new_file(path)
        self._rate = Fraction(rate).limit_denominator(1001)
        self._container: Any = None
        self._stream: Any = None

    def __enter__(self) -> VideoWriter:
        self._container = self._av.open(str(self._file.__enter__()), "w")
        return self

    def write(self, frame: npt.NDArray[np.uint8]) -> None:
        """Appends a frame [H, W, 3] with even sides, as the encoder needs them; all frames are of one size."""
        if self._stream is None:
            self._stream = self._container.add_stream(CODEC, rate=self._rate, options={"crf": QUALITY})
            self._stream.height, self._stream.width = frame.shape[:2]
            self._stream.pix_fmt = "yuv420p"
        for packet in self._stream.encode(self._av.VideoFrame.from_ndarray(frame, format="rgb24")):
            self._container.mux(packet)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and self._stream is not None:
                for packet in self._stream.encode():
                    self._container.mux(packet)
            self._container.close()
        except BaseException as late:
            self._file.__exit__(type(late), late, late.__traceback__)
            raise
        self._file.__exit__(kind, error, trace)
