# SPDX-License-Identifier: Apache-2.0
"""Reads the frames of a sample one after the other, from a video file, or from an array in .npy or .safetensors.

Letters: F frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vorta_trt.model import video_reader
from vorta_trt.model.files import absence
from vorta_trt.plugins.errors import VortaError
from vorta_trt.plugins.host_memory import mapping

ARRAY_SUFFIXES = (".npy", ".safetensors")
VIDEO_SUFFIXES = video_reader.SUFFIXES
SUFFIXES = (*ARRAY_SUFFIXES, *VIDEO_SUFFIXES)
TENSOR_NAMES = ("frames", "video")  # names of the sample among several tensors of a .safetensors file
MIN_SIDE = 11  # least height and width: SSIM's window; it also distinguishes these axes from channels
ROUNDING = 1e-3  # tolerance of floating-point values outside [0, 1]

Frame = npt.NDArray[np.float64]


class SampleError(VortaError):
    """A sample that cannot be compared; the message names the file."""


def read_frames(path: Path) -> Iterator[Frame]:
    """Yields the frames of a sample, [H, W, 3] RGB in [0, 1].

    An array is uint8 in 0..255 or floating point in [0, 1], and [F, H, W, 3], [3, F, H, W] or [F, 3, H, W], or one of
    these with a leading batch of 1. A .safetensors file holds one tensor, or names it "frames" or "video".

    Raises:
        SampleError: The file cannot be read, or holds something else.
        FileNotFoundError: There is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"sample {path}: {absence(path)}; give a video, .npy or .safetensors file")
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return _video_frames(path)
    if suffix == ".npy":
        return _array_frames(path, _load_npy(path))
    if suffix == ".safetensors":
        return _array_frames(path, _load_safetensors(path))
    raise SampleError(f"sample {path}: suffix {suffix!r} is not known; must be one of {', '.join(SUFFIXES)}")


def frame_rate(path: Path) -> float | None:
    """Frames per second of a video file; None for arrays, and for videos that do not state it."""
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        return None
    with _sample_errors():
        return video_reader.frame_rate(path)


def _video_frames(path: Path) -> Iterator[Frame]:
    with _sample_errors():
        for picture in video_reader.read_pictures(path):
            yield picture.pixels / 255.0


@contextmanager
def _sample_errors() -> Iterator[None]:
    try:
        yield
    except video_reader.VideoError as error:
        raise SampleError(f"sample {error}") from error


def _load_npy(path: Path) -> npt.NDArray[Any]:
    try:
        with mapping(path):
            loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise _unreadable(path, error) from error
    array: npt.NDArray[Any] = loaded
    return array


def _load_safetensors(path: Path) -> npt.NDArray[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with mapping(path), safe_open(path, framework="pt") as file:
            names = list(file.keys())
            known = [name for name in TENSOR_NAMES if name in names]
            if len(names) != 1 and len(known) != 1:
                raise SampleError(
                    f"sample {path}: holds tensors {names}; must hold one, or name one of them "
                    f"{' or '.join(map(repr, TENSOR_NAMES))}"
                )
            tensor = file.get_tensor(names[0] if len(names) == 1 else known[0])
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    array: npt.NDArray[Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()  # NumPy lacks bfloat16
    return array


def _unreadable(path: Path, error: Exception) -> SampleError:
    return SampleError(
        f"sample {path}: cannot be read ({error}); it is damaged or not a {path.suffix} file; replace it"
    )


@dataclass(frozen=True)
class _Layout:
    """A layout of an array; `order` is the permutation of its axes to [F, H, W, 3]."""

    name: str
    order: tuple[int, int, int, int]

    def fits(self, shape: tuple[int, ...]) -> bool:
        frames, height, width, channels = (shape[axis] for axis in self.order)
        return channels == 3 and frames >= 1 and min(height, width) >= MIN_SIDE


_LAYOUTS = (
    _Layout("[F, H, W, 3]", (0, 1, 2, 3)),
    _Layout("[3, F, H, W]", (1, 2, 3, 0)),
    _Layout("[F, 3, H, W]", (0, 2, 3, 1)),
)


def _array_frames(path: Path, array: npt.NDArray[Any]) -> Iterator[Frame]:
    given = array.shape
    if array.ndim == 5 and array.shape[0] == 1:
        array = array[0]
    fitting = [layout for layout in _LAYOUTS if array.ndim == 4 and layout.fits(array.shape)]
    if len(fitting) != 1:
        problem = "could be " + " or ".join(layout.name for layout in fitting) if fitting else "is no video"
        raise SampleError(
            f"sample {path}: shape {given} {problem}; must be {', '.join(layout.name for layout in _LAYOUTS)} with "
            f"H and W at least {MIN_SIDE}; save it as [F, H, W, 3]"
        )
    array = array.transpose(fitting[0].order)  # [F, H, W, 3]
    convert: Callable[[npt.NDArray[Any], int], Frame]
    if array.dtype == np.uint8:
        convert = _from_bytes
    elif np.issubdtype(array.dtype, np.floating):

        def convert(picture: npt.NDArray[Any], number: int) -> Frame:
            return _from_floats(path, picture, number)

    else:
        raise SampleError(
            f"sample {path}: type {array.dtype}; must be uint8 in 0..255 or floating point in [0, 1]; convert it"
        )
    return (convert(picture, number) for number, picture in enumerate(array))


def _from_bytes(picture: npt.NDArray[Any], number: int) -> Frame:
    return np.asarray(picture, dtype=np.float64) / 255.0


def _from_floats(path: Path, picture: npt.NDArray[Any], number: int) -> Frame:
    values: Frame = np.asarray(picture, dtype=np.float64)
    lowest, highest = float(values.min()), float(values.max())
    if not (lowest >= -ROUNDING and highest <= 1 + ROUNDING):  # also if not a number
        raise SampleError(
            f"sample {path}: frame {number} has values from {lowest:g} to {highest:g}; must be in [0, 1]; of frames in "
            f"[-1, 1], save (frames + 1) / 2"
        )
    return values.clip(0.0, 1.0)
