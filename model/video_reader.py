# SPDX-License-Identifier: Apache-2.0
"""Reading video files, as a player shows them: turned and mirrored upright, square pixels, the right colours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vorta_trt.plugins.errors import VortaError
from vorta_trt.plugins.extras import import_extra

SUFFIXES = (".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
HD_HEIGHT = 720  # a video without a colour space is read as BT.709 from this height on, and as BT.601 below
_UNSPECIFIED = 2  # FFmpeg's number for an unspecified colour space


class VideoError(VortaError):
    """A file cannot be read as a video; the message names it."""


@dataclass(frozen=True)
class Picture:
    """A frame of a video.

    Attributes:
        start: seconds since the first frame; frames need not be equally long.
        end: seconds at which it leaves the screen, if no other frame comes before.
        pixels: uint8 RGB [H, W, 3].
    """

    start: float
    end: float
    pixels: npt.NDArray[np.uint8]


def read_pictures(path: Path) -> Iterator[Picture]:
    """Decodes the first video stream of a file, frame by frame.

    A display matrix, as phones write it, is applied up to quarter turns and mirroring; pixels that are not square are
    stretched along the width. A file without a colour space is taken for BT.709 from 720 lines on, as players take it.

    Args:
        path: a file that FFmpeg reads.

    Yields:
        The frames in the order of their display.

    Raises:
        VideoError: the file is damaged, or holds no video.
        MissingExtraError: the package av is not installed.
    """
    with _opened(path) as (container, stream):
        usual = float(1 / stream.average_rate) if stream.average_rate else 0.0
        first: float | None = None
        for number, frame in enumerate(container.decode(stream)):
            time = number * usual if frame.time is None else float(frame.time)
            first = time if first is None else first
            yield Picture(time - first, time - first + usual, _shown(frame, stream.sample_aspect_ratio))


def frame_rate(path: Path) -> float | None:
    """The average frames per second of a video file; None if it does not say. Raises what `read_pictures` raises."""
    with _opened(path) as (_, stream):
        return float(stream.average_rate) if stream.average_rate else None


def import_av() -> Any:
    """Imports the package that decodes and encodes videos; raises `MissingExtraError` if it is not installed."""
    return import_extra("av", "video")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container, and its first video stream."""
    av = import_av()
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError(f"{path}: has no video stream; give a video file")
            yield container, container.streams.video[0]
    except (av.FFmpegError, OSError) as error:
        raise VideoError(
            f"{path}: cannot be decoded ({error.strerror or error}); it is damaged or not a {path.suffix} file; "
            f"replace it, or convert it to mp4"
        ) from error


def _shown(frame: Any, aspect: Any) -> npt.NDArray[np.uint8]:
    options: dict[str, Any] = {"format": "rgb24"}
    if frame.colorspace == _UNSPECIFIED and frame.height >= HD_HEIGHT:
        options["src_colorspace"] = "ITU709"
    if aspect and aspect != 1:
        options["width"] = max(1, round(frame.width * aspect))
    pixels: npt.NDArray[np.uint8] = frame.to_ndarray(**options)
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return pixels if matrix is None else _turned(pixels, np.frombuffer(bytes(matrix), np.int32))


def _turned(pixels: npt.NDArray[np.uint8], matrix: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """Applies a display matrix, [a b u; c d v; x y w]: a point (p, q) is shown at (a p + c q, b p + d q)."""
    a, b, _, c, d = (int(value) for value in matrix[:5])
    if abs(b) > abs(a):  # a quarter turn: rows are shown as columns
        rows, columns = b, c
        pixels = pixels.transpose(1, 0, 2)
    else:
        rows, columns = d, a
    pixels = pixels[:: -1 if rows < 0 else 1, :: -1 if columns < 0 else 1]
    return np.ascontiguousarray(pixels)
