# SPDX-License-Identifier: Apache-2.0
"""The videos that data is prepared from, each with its caption, and their frames at the rate and size of training."""

from __future__ import annotations

import codecs
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from torch.nn import functional

from vorta_trt.model.files import absence
from vorta_trt.model.records import first_error
from vorta_trt.model.training.data import DataError
from vorta_trt.model.video_reader import SUFFIXES, VideoError, read_pictures

logger = logging.getLogger(__name__)

Refuse = Callable[[str, str], None]
"""Called with the name of a video that cannot be used, and the reason; returns if the others shall go on."""

_EARLY = 1e-3  # seconds that a frame may start late: containers round times
_MARKS = {  # byte order mark -> encoding; UTF-32 first, because the mark of UTF-32 LE begins with that of UTF-16 LE
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}


@dataclass(frozen=True)
class Clip:
    """A video with its caption.

    Attributes:
        name: Name of the sample.
        video: The file.
        caption: Text that says what it shows.
    """

    name: str
    video: Path
    caption: str


def find_clips(videos: Path, captions: Path | None, refuse: Refuse) -> list[Clip]:
    """Finds the videos that have a caption, by name; the others are refused. Hidden files are ignored.

    Args:
        videos: A folder of video files.
        captions: A JSON object, name of a video file -> caption; None reads <video>.txt beside every video.
        refuse: Called for a video that cannot be used.

    Raises:
        FileNotFoundError: There is no such folder, it holds no video, or there is no such file of captions.
        DataError: The captions are not what they should be.
    """
    if not videos.is_dir():
        raise FileNotFoundError(f"videos {videos}: is no folder; give the folder that holds the video files")
    files = sorted(
        file
        for file in videos.iterdir()
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and not file.is_dir()
    )
    if not files:
        raise FileNotFoundError(f"videos {videos}: holds no video file (known: {', '.join(SUFFIXES)})")
    texts = None if captions is None else _read_captions(captions)
    if unknown := sorted({*(texts or {})} - {file.name for file in files}):
        logger.warning("captions %s: %d name no video there, the first is %r", captions, len(unknown), unknown[0])
    clips: dict[str, Clip] = {}
    for file in files:
        try:
            caption = _caption_beside(file) if texts is None else _caption_of(file, captions, texts)
            if file.stem in clips:
                raise DataError(f"video {file.name}: {clips[file.stem].video.name} has the same name; rename one")
        except DataError as error:
            refuse(file.name, str(error))
        else:
            clips[file.stem] = Clip(file.stem, file, caption)
    return list(clips.values())


def read_video(file: Path, size: tuple[int, int, int], frames_per_second: float) -> Tensor:
    """Reads the first F frames at a rate, scaled to cover H x W and cropped around the centre.

    Where the file has another rate, each frame is the one on screen at its time.

    Args:
        file: The video.
        size: F, H, W in pixels.
        frames_per_second: Rate at which frames are taken.

    Returns:
        float32 [3, F, H, W] in [-1, 1].

    Raises:
        DataError: It is no video, or too short.
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


def _caption_of(video: Path, captions: Path | None, texts: dict[str, str]) -> str:
    if video.name not in texts:
        raise DataError(f"video {video.name}: has no caption; write an entry {video.name!r} in {captions}")
    caption = texts[video.name].strip()
    if not caption:
        raise DataError(f"video {video.name}: its caption in {captions} is empty; write what the video shows")
    try:
        caption.encode()
    except UnicodeEncodeError as error:  # half of a pair of escapes, "\\ud83d" without its second half
        raise DataError(f"video {video.name}: its caption in {captions} is no text ({error}); write it anew") from error
    return caption


def _caption_beside(video: Path) -> str:
    file = video.with_suffix(".txt")
    try:
        caption = _decode(file.read_bytes()).strip()
    except FileNotFoundError as error:
        raise DataError(f"video {video.name}: has no caption; write {file.name} beside it") from error
    except UnicodeError as error:
        raise DataError(f"caption {file.name}: is not UTF-8 text ({error}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"caption {file.name}: cannot be read ({error.strerror})") from error
    if not caption:
        raise DataError(f"caption {file.name}: is empty; write what the video shows")
    return caption


def _read_captions(file: Path) -> dict[str, str]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise DataError(f"captions {file}: {twice!r} stands there {names.count(twice)} times; keep one of them")
        return dict(pairs)

    if not file.is_file():
        raise FileNotFoundError(f"captions {file}: {absence(file)}; give a JSON object, video file -> caption")
    remedy = 'give a JSON object, e.g. {"cat.mp4": "A cat walks on grass"}'
    try:
        content = json.loads(_decode(file.read_bytes()), object_pairs_hook=unique)
        return TypeAdapter(dict[str, str]).validate_python(content, strict=True)
    except ValidationError as error:
        raise DataError(f"captions {file}: {first_error(error)}; {remedy}") from error
    except (json.JSONDecodeError, RecursionError, UnicodeError) as error:
        raise DataError(f"captions {file}: is not valid JSON in UTF-8 ({error}); {remedy}") from error


def _decode(content: bytes) -> str:
    """The text of a file: UTF-8, or what its byte order mark says."""
    return content.decode(next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8"))
