# SPDX-License-Identifier: Apache-2.0
"""`choose_size`: which of a model's video sizes a request means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vorta_trt.model.images import ImageLike
from vorta_trt.model.video_size import VideoSize
from vorta_trt.runtime.pipelines.planner import RequestPlanner
from vorta_trt.serving.video_request import RequestError, VideoRequest

SAME_LENGTH = 0.5  # seconds by which a video may be longer or shorter than asked for


def choose_size(
    request: VideoRequest, planner: RequestPlanner, model: str, images: Mapping[str, ImageLike]
) -> VideoSize:
    """The size that a request asks for by size, frames or seconds, or else the one for its images, or the model's own.

    Args:
        request: Fields of the request.
        planner: Planner of the model.
        model: Name of the model.
        images: Images by the pipeline's argument.

    Raises:
        RequestError: The model has no such size; the message lists those that it has.
    """
    width, height = _picture(request)
    rate = planner.frames_per_second
    sizes = [VideoSize.parse(size) for size in planner.sizes]
    asked = {
        "size": None if width is None and height is None else (width, height),
        "num_frames": request.num_frames,
        "seconds": request.seconds,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    found = [size for size in sizes if all(_is(size, name, value, rate) for name, value in given.items())]
    if not found:
        told = {name: _told(value) for name, value in given.items()}
        has = ", ".join(f"{size.width}x{size.height} of {size.frames} frames" for size in sizes)
        wrong = [name for name, value in given.items() if not any(_is(size, name, value, rate) for size in sizes)]
        raise RequestError(
            f"{', '.join(f'{name} {value}' for name, value in told.items())}: model {model} makes videos of {has}, at "
            f"{rate:g} frames per second; ask for one of these",
            (wrong or list(given))[0],
            "size_not_available",
        )
    if len(found) > 1 and images and request.size is None:
        best = VideoSize(*planner.for_images(images).size)
        found = [size for size in found if size == best] or found
    own = VideoSize(*planner.size)
    return own if own in found and not images else found[0]


def _picture(request: VideoRequest) -> tuple[int | None, int | None]:
    """Width and height that are asked for."""
    width, height = request.width, request.height
    if request.size is None:
        return width, height
    wide, high = (int(part) for part in request.size.split("x"))
    if (width not in (None, wide)) or (height not in (None, high)):
        raise RequestError(f"size {request.size}: width and height say {width}x{height}; give one", "size")
    return wide, high


def _is(size: VideoSize, name: str, value: Any, rate: float) -> bool:
    """Whether a size is what a field asks for."""
    if name == "size":
        return value[0] in (None, size.width) and value[1] in (None, size.height)
    if name == "num_frames":
        return bool(size.frames == value)
    return abs(size.frames / rate - float(value)) < SAME_LENGTH


def _told(value: Any) -> str:
    return "x".join(str(part or "any") for part in value) if isinstance(value, tuple) else str(value)
