# SPDX-License-Identifier: Apache-2.0
"""Writing frames: H.264 in a video file whose colours say what they are, or an array with the frames as they are."""

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
# FFmpeg's numbers of matrix, primaries and transfer, and swscale's name of the matrix, by convention for HD and below.
BT709, BT601 = (1, "ITU709"), (6, "ITU601")
LIMITED_RANGE = 1  # of luma, 16 to 235
# Frames that are encoded at the same time. The encoder's choices depend on the number, so it is the same on every
# machine. A frame follows the one before at a distance of three or four of its 45 rows of
# macroblocks (720 lines), so that more threads would wait. Small frames have two such rows a thread, x264's own bound.
MOST_THREADS, LINES_OF_THREAD = 16, 32

FrameWriter = Callable[[npt.NDArray[np.uint8]], None]


def check_output(path: Path) -> None:
    """Raises what `write_frames` would raise, before anything is generated.

    Args:
        path: of a video or an array.

    Raises:
        ValueError: another suffix.
        WriteError: nothing can be written there.
        VortaError: the package av is not installed, or has no encoder for H.264.
    """
    if path.suffix.lower() not in (*VIDEOS, ARRAY):
        raise ValueError(f"video {path}: its suffix must be one of {', '.join((*VIDEOS, ARRAY))}; use {path.stem}.mp4")
    files.check_output(path)
    if path.suffix.lower() != ARRAY:
        check_encoder()


def write_frames(path: Path, frames: npt.NDArray[np.uint8], frames_per_second: float) -> Path:
    """Writes a video, which is there whole or not at all, and which `vorta-trt compare` reads.

    Args:
        path: .mp4, .mkv, .mov, or .npy, where nothing is lost and `frames_per_second` is not said.
        frames: uint8 [F, H, W, 3] with even H and W.
        frames_per_second: the rate.

    Returns:
        `path`.

    Raises:
        ValueError, WriteError, VortaError: see `check_output`.
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

    Colours are BT.709 from 720 lines on and BT.601 below, in limited range, and tagged so; in .mp4 and .mov the index
    comes first, so that a player can start while the file still loads. Several frames are encoded at the same time, in
    threads, whose number does not depend on the cores. The same frames may still give files of a few other bytes: runs
    of libx264 differed at some sizes, such as 64x96 and 480x832, and at none of 128, 256, 768 and 1280 pixels of width.

    Args:
        path: suffix .mkv, .mov or .mp4; its folder must exist.
        rate: frames per second.

    Yields:
        A function that appends a frame, uint8 [H, W, 3] with even sides, as the encoder needs them; all of one size.

    Raises:
        ValueError: another suffix, or a rate that is not positive.
        VortaError: the package av is not installed, or lacks H.264.
        WriteError: the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix not in VIDEOS:
        raise ValueError(f"video {path}: its suffix must be one of {', '.join(VIDEOS)}; use {path.stem}.mp4")
    rate = float(rate)  # of NumPy's and torch's, too
    if not 0 < rate < 1000:
        raise ValueError(f"fps {rate}: must be positive and below 1000; use 16")
    check_encoder()
    av = import_av()
    reformatter = av.video.reformatter.VideoReformatter()  # it is set up once for all frames
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
                context.thread_type = "FRAME"  # PyAV's is "SLICE", where all wait for all in every frame
                context.thread_count = max(1, min(MOST_THREADS, frame.shape[0] // LINES_OF_THREAD))
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture = reformatter.reformat(picture, format="yuv420p", dst_colorspace=matrix, dst_color_range="MPEG")
            picture.colorspace, picture.color_range = number, LIMITED_RANGE
            container.mux(stream.encode(picture))

        yield write
        if stream.codec_context.is_open:  # there were frames
            container.mux(stream.encode())


class BackgroundWriter:
    """Writes a video in a thread of its own while later frames are made; it is there whole or not at all.

    A context manager; leaving it waits for the file, or on an error leaves none.

    Args:
        path: As of `write_frames`.
        frames_per_second: The rate.
    """

    def __init__(self, path: Path, frames_per_second: float) -> None:
        self._path, self._rate = path, frames_per_second
        self._frames: queue.SimpleQueue[npt.NDArray[np.uint8] | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._is_broken_off = False
        self._whole: list[npt.NDArray[np.uint8]] = []  # of an array
        self._thread = threading.Thread(target=self._run, name=f"writes {path.name}", daemon=True)

    def __call__(self, frames: npt.NDArray[np.uint8]) -> None:
        """Appends frames, uint8 [F, H, W, 3], which must stay as they are; raises what writing has raised."""
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
            if self._path.suffix.lower() == ARRAY:  # written at once, in the end
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
    """Writes several videos, one after the other, each by a `BackgroundWriter`.

    A context manager; leaving it on an error leaves no file of the video that is being written.

    Args:
        path_of: The file of a video, by its number.
        frames_per_second: The rate.
    """

    def __init__(self, path_of: Callable[[int], Path], frames_per_second: float) -> None:
        self._path_of, self._rate = path_of, frames_per_second
        self._open = ExitStack()
        self._writer: BackgroundWriter | None = None

    def write(self, number: int, frames: npt.NDArray[np.uint8]) -> None:
        """Appends frames to a video; raises what writing it has raised."""
        if self._writer is None:
            self._writer = self._open.enter_context(BackgroundWriter(self._path_of(number), self._rate))
        self._writer(frames)

    def finish(self) -> None:
        """Waits until the video that is being written is there; the next frames are of another one."""
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
    """Nobody wants the file any more."""


def check_encoder() -> None:
    """Raises VortaError if the package av is not installed, or lacks H.264."""
    av = import_av()
    if CODEC not in av.codecs_available:
        raise VortaError(f"av {av.__version__} lacks the encoder {CODEC}; install av from PyPI")
