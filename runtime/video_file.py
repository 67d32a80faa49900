# SPDX-License-Identifier: Apache-2.0
"""Writes frames, as H.264 into a video file with tagged colours, or unencoded as an array."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from vorta_trt.model import files
from vorta_trt.model.video_reader import HD_HEIGHT, import_av
from vorta_trt.plugins.errors import VortaError

CODEC, QUALITY = "libx264", "16"  # constant rate factor; 18 counts as visually lossless
VIDEOS = (".mkv", ".mov", ".mp4")
ARRAY = ".npy"
# FFmpeg's number of matrix, primaries and transfer, and swscale's name of the matrix: for HD, and for smaller videos.
BT709, BT601 = (1, "ITU709"), (6, "ITU601")
LIMITED_RANGE = 1  # FFmpeg's number for luma from 16 to 235
# Number of frames that are encoded at the same time. The encoder's choices depend on it, so it is the same on every
# machine. Each frame is encoded three or four rows of macroblocks behind the frame before; 720 lines have 45 such rows,
# so more threads would only wait. Small frames have at least two rows per thread, which is x264's own bound.
MOST_THREADS, LINES_OF_THREAD = 16, 32

FrameWriter = Callable[[npt.NDArray[np.uint8]], None]


def check_output(path: Path) -> None:
    """Raises what `write_frames` would raise, before anything is generated.

    Args:
        path: Path of a video or an array.

    Raises:
        ValueError: The path has another suffix.
        WriteError: The file cannot be written.
        VortaError: The package av is not installed, or has no encoder for H.264.
    """
    if path.suffix.lower() not in (*VIDEOS, ARRAY):
        raise ValueError(f"video {path}: its suffix must be one of {', '.join((*VIDEOS, ARRAY))}; use {path.stem}.mp4")
    files.check_output(path)
    if path.suffix.lower() != ARRAY:
        check_encoder()


def write_frames(path: Path, frames: npt.NDArray[np.uint8], frames_per_second: float) -> Path:
    """Writes a video that `vorta-trt compare` can read. A failed write leaves no partial file.

    Args:
        path: Path with the suffix .mp4, .mkv, .mov or .npy. The latter is lossless, and does not store
            `frames_per_second`.
        frames: Frames, uint8 [F, H, W, 3] with even H and W.
        frames_per_second: Frame rate of the video.

    Returns:
        `path`.

    Raises:
        ValueError, WriteError, VortaError: See `check_output`.
    """
    check_output(path)
    if path.suffix.lower() == ARRAY:
        with files.new_file(path) as unfinished, unfinished.open("wb") as file:  # np.save would add a suffix to a name
            np.save(file, frames)
        return path
    with video_writer(path, frames_per_second) as write:
        for frame in frames:
            write(frame)
    return path


@contextmanager
def video_writer(path: Path, rate: float) -> Iterator[FrameWriter]:
    """Writes a video frame by frame; the file appears when the block ends without an error.

    Colours are BT.709 from 720 lines on and BT.601 below, in limited range, and tagged as such. In .mp4 and .mov the
    index comes first, so that a player can start while the file still loads. Several threads encode frames at the same
    time; their number does not depend on the machine's cores. Still, the same frames may give files that differ in a
    few bytes: runs of libx264 differed at some sizes, such as 64x96 and 480x832, but not at widths of 128, 256, 768 and
    1280 pixels.

    Args:
        path: Path with the suffix .mkv, .mov or .mp4; its folder must exist.
        rate: Frames per second.

    Yields:
        A function that appends a frame, uint8 [H, W, 3]. The encoder needs even sides; all frames have one size.

    Raises:
        ValueError: The path has another suffix, or the rate is not positive.
        VortaError: The package av is not installed, or lacks H.264.
        WriteError: The file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in VIDEOS:
        raise ValueError(f"video {path}: its suffix must be one of {', '.join(VIDEOS)}; use {path.stem}.mp4")
    rate = float(rate)  # also converts numbers of NumPy and torch
    if not 0 < rate < 1000:
        raise ValueError(f"fps {rate}: must be positive and below 1000; use 16")
    check_encoder()
    av = import_av()
    reformatter = av.video.reformatter.VideoReformatter()  # set up once for all frames
    options = {} if suffix == ".mkv" else {"movflags": "+faststart"}
    with files.new_file(path) as unfinished, av.open(str(unfinished), "w", options=options) as container:
        stream = container.add_stream(CODEC, rate=Fraction(rate).limit_denominator(1001), options={"crf": QUALITY})
        stream.pix_fmt = "yuv420p"

        def write(frame: npt.NDArray[np.uint8]) -> None:
            number, matrix = BT709 if frame.shape[0] >= HD_HEIGHT else BT601
            if not stream.codec_context.is_open:
                stream.height, stream.width = frame.shape[:2]
                context = stream.codec_context
                context.colorspace = context.color_primaries = context.color_trc = number
                context.color_range = LIMITED_RANGE
                context.thread_type = "FRAME"  # PyAV's default is "SLICE", where all threads wait at every frame's end
                context.thread_count = max(1, min(MOST_THREADS, frame.shape[0] // LINES_OF_THREAD))
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture = reformatter.reformat(picture, format="yuv420p", dst_colorspace=matrix, dst_color_range="MPEG")
            picture.colorspace, picture.color_range = number, LIMITED_RANGE
            container.mux(stream.encode(picture))

        yield write
        if stream.codec_context.is_open:  # there were frames
            container.mux(stream.encode())


class BackgroundWriter:
    """Writes a video in a background thread while later frames are made.

    It is a context manager. Leaving it waits until the file is complete; after an error there is no file.

    Args:
        path: Path of the video or array, as for `write_frames`.
        frames_per_second: Frame rate of the video.
    """

    def __init__(self, path: Path, frames_per_second: float) -> None:
        self._path, self._rate = path, frames_per_second
        self._frames: queue.SimpleQueue[npt.NDArray[np.uint8] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._is_broken_off = False
        self._whole: list[npt.NDArray[np.uint8]] = []  # all frames, if the file is an array
        self._thread = threading.Thread(target=self._run, name=f"writes {path.name}", daemon=True)

    def __call__(self, frames: npt.NDArray[np.uint8]) -> None:
        """Appends frames, uint8 [F, H, W, 3], which must not be modified; raises an earlier error of the thread."""
        if self._error is not None:
            raise self._error
        self._frames.put(frames)

    def __enter__(self) -> BackgroundWriter:
        check_output(self._path)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_broken_off = error is not None
        self._frames.put(None)
        try:
            self._thread.join()
        except BaseException:  # Ctrl-C
            self._is_broken_off = True
            self._thread.join()
            raise
        if self._error is not None and error is None:
            raise self._error
        if self._whole and error is None:
            write_frames(self._path, np.concatenate(self._whole), self._rate)

    def _run(self) -> None:
        try:
            if self._path.suffix.lower() == ARRAY:  # written at the end, as a whole
                self._whole = list(self._given())
                return
            with video_writer(self._path, self._rate) as write:
                for frames in self._given():
                    for frame in frames:
                        self._check_wanted()
                        write(frame)
                self._check_wanted()
        except _BrokenOffError:
            pass
        except BaseException as error:
            self._error = error

    def _given(self) -> Iterator[npt.NDArray[np.uint8]]:
        while (frames := self._frames.get()) is not None:
            yield frames
            self._check_wanted()
        self._check_wanted()

    def _check_wanted(self) -> None:
        if self._is_broken_off:
            raise _BrokenOffError


class BackgroundFiles:
    """Writes several videos, one after the other, each with a `BackgroundWriter`.

    It is a context manager. If it is left with an error, there is no file of the video that was being written.

    Args:
        path_of: Returns the file of a video, given the video's number.
        frames_per_second: Frame rate of the videos.
    """

    def __init__(self, path_of: Callable[[int], Path], frames_per_second: float) -> None:
        self._path_of, self._rate = path_of, frames_per_second
        self._open = ExitStack()
        self._writer: BackgroundWriter | None = None

    def write(self, number: int, frames: npt.NDArray[np.uint8]) -> None:
        """Appends frames to a video; raises an earlier error of its thread."""
        if self._writer is None:
            self._writer = self._open.enter_context(BackgroundWriter(self._path_of(number), self._rate))
        self._writer(frames)

    def finish(self) -> None:
        """Waits until the current video is written; the next frames begin another video."""
        self._writer = None
        self._open.close()

    def __enter__(self) -> BackgroundFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer = None
        self._open.__exit__(kind, error, trace)


class _BrokenOffError(Exception):
    """The file is not needed any more, so that writing ends."""


def check_encoder() -> None:
    """Raises VortaError if the package av is not installed, or lacks H.264."""
    av = import_av()
    if CODEC not in av.codecs_available:
        raise VortaError(f"av {av.__version__} lacks the encoder {CODEC}; install av from PyPI")
