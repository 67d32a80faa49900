# SPDX-License-Identifier: Apache-2.0
"""Images that a video begins or ends with: which ones a request must have, and reading them.

Pipelines scale an image to the height and width of the video, whatever its own are. So an image of another aspect would
be distorted: it is refused, as is one that would be enlarged many times.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from vorta_trt.model.families import PipelineKind
from vorta_trt.model.files import absence, refuse_pointer
from vorta_trt.model.video_size import VideoSize

ImageLike = str | Path | Image.Image
Images = Mapping[str, Image.Image]  # RGB, by the pipeline's argument
MOST_STRETCHED = 1.1  # how much more one side may be scaled than the other
MOST_ENLARGED = 4.0  # how much either side may be enlarged
FIRST = "image"  # the argument of the image that a video begins with
# The errors that Pillow raises for a damaged image, the last one as soon as it has read the header.
_DAMAGED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class MissingImageError(ValueError):
    """A request lacks an image that the model needs.

    Args:
        name: The pipeline's argument.
        what: What the model does with the image.
    """

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name} None: this model {what}; give it, e.g. {name}='{name}.png'")
        self.name, self.what = name, what

    @property
    def of_command(self) -> str:
        """The message for a command line, whose option has the argument's name."""
        option = f"--{self.name.replace('_', '-')}"
        return f"{option}: this model {self.what}; give it, e.g. {option} {self.name}.png"


def choose_kind(kinds: Sequence[PipelineKind], given: Collection[str]) -> PipelineKind:
    """The pipeline that a request runs: the first one that takes its images, and has all that it needs.

    Args:
        kinds: pipelines of the model.
        given: names of the arguments that have an image.

    Raises:
        MissingImageError: an image is missing.
        ValueError: no pipeline takes the images.
    """
    for kind in kinds:
        if set(kind.images) <= set(given) <= {*kind.images, *kind.optional_images}:
            return kind
    taken = list(dict.fromkeys(name for kind in kinds for name in (*kind.images, *kind.optional_images)))
    if not taken:
        raise ValueError(f"{next(iter(given))}: this model makes videos of text alone; leave it out")
    if foreign := [argument for argument in given if argument not in taken]:
        raise ValueError(f"{foreign[0]}: this model takes {' and '.join(taken)} alone; leave it out")
    kind = next((kind for kind in kinds if not set(given) - {*kind.images, *kind.optional_images}), kinds[0])
    missing = [argument for argument in kind.images if argument not in given]
    what = "begins a video with one" if missing[0] == FIRST else "ends a video with one"
    raise MissingImageError(missing[0], what)


def read_image(name: str, image: ImageLike) -> Image.Image:
    """An image in RGB, turned as its EXIF orientation says; transparency is dropped.

    Args:
        name: name of the argument, for errors.
        image: a file that Pillow reads, or an image of Pillow.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, or is damaged.
    """
    if not isinstance(image, str | Path | Image.Image):
        raise ValueError(f"{name} of type {type(image).__name__}: must be a file or an image of PIL")
    if isinstance(image, Image.Image):
        return _converted(name, name, image)
    path = Path(image)
    if path.is_dir():
        raise ValueError(f"{name} {path}: is a folder; give a PNG, JPEG or WebP file in it")
    if not path.is_file():
        raise FileNotFoundError(f"{name} {path}: {absence(path)}; give a PNG, JPEG or WebP file")
    refuse_pointer(path, name)
    try:
        with warnings.catch_warnings():  # Pillow warns from half of its limit on, and refuses above it
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(path)
    except PermissionError:
        raise
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} {path}: is no image that can be read; give a PNG, JPEG or WebP file") from error
    except _DAMAGED as error:  # found in the header already
        raise _damaged(name, str(path), error) from error
    with opened:
        return _converted(name, str(path), opened)


def _converted(name: str, source: str, image: Image.Image) -> Image.Image:
    try:
        turned = ImageOps.exif_transpose(image)
        return turned.convert("RGB")
    except _DAMAGED as error:
        raise _damaged(name, source, error) from error


def _damaged(name: str, source: str, error: Exception) -> ValueError:
    return ValueError(f"{name} {source}: is damaged or too large ({error}); save it again")


def read_images(
    given: Mapping[str, ImageLike],
    video: tuple[int, int, int],
    grid: tuple[int, int, int],
    sizes: Sequence[str] = (),
) -> dict[str, Image.Image]:
    """Images by the pipeline's argument, each of which fits a video.

    Args:
        given: files or images, by the pipeline's argument.
        video: frames, height and width in pixels.
        grid: frames, height and width in tokens.
        sizes: sizes of all videos that there are models for, of which `video` is closest to the images; empty for one
            model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an image is damaged or does not fit, or the video has no more frames than images.
    """
    if given and video[0] <= len(given):
        raise ValueError(
            f"{' and '.join(given)}: the video has no more frames than images ({video[0]}); make a model of more: "
            f"vorta-trt build CHECKPOINT --size 81x{video[1]}x{video[2]}"
        )
    images = {name: read_image(name, image) for name, image in given.items()}
    for name, image in images.items():
        check_size(name, image, video, (video[1] // grid[1], video[2] // grid[2]), sizes)
    return images


def check_size(
    name: str, image: Image.Image, video: tuple[int, int, int], step: tuple[int, int], sizes: Sequence[str] = ()
) -> None:
    """Refuses an image that would have to be distorted or enlarged many times for a video.

    Args:
        name: name of the argument, for errors.
        image: the image.
        video: frames, height and width in pixels.
        step: steps between the heights and between the widths that a model of this family can be built for.
        sizes: see `read_images`.

    Raises:
        ValueError: the image does not fit.
    """
    frames, height, width = video
    given = f"{name} of {image.width}x{image.height} pixels (width x height)"
    if max(width / image.width, height / image.height) > MOST_ENLARGED:
        raise ValueError(
            f"{given}: is too small for a video of {width}x{height}; each side must be at least 1/{MOST_ENLARGED:g} of "
            f"the video's, {math.ceil(width / MOST_ENLARGED)}x{math.ceil(height / MOST_ENLARGED)}; give a larger one"
        )
    if stretch(image, height, width) > MOST_STRETCHED:
        like = "x".join(map(str, (frames, *size_like(image, height * width, step))))
        fitting = [size for size in sizes if stretch(image, *_height_and_width(size)) <= MOST_STRETCHED]
        others = f", the closest of {', '.join(sizes)}" if len(sizes) > 1 and not fitting else ""
        remedy = f"make a model of its aspect: vorta-trt build CHECKPOINT --size {like}"
        raise ValueError(
            f"{given}: has another aspect than the video of {width}x{height}{others}, which would distort it by more "
            f"than {100 * MOST_STRETCHED - 100:.0f} %; crop it, or "
            f"{f'take the size that fits it, {fitting[0]}' if fitting else remedy}"
        )


def _height_and_width(size: str) -> tuple[int, int]:
    video = VideoSize.parse(size)
    return video.height, video.width


def stretch(image: Image.Image, height: int, width: int) -> float:
    """How much more one side is scaled than the other when the image becomes a frame; 1: its aspect is the video's."""
    across, down = width / image.width, height / image.height
    return max(across / down, down / across)


def size_like(image: Image.Image, area: int, step: tuple[int, int]) -> tuple[int, int]:
    """Height and width of about `area` pixels in the image's aspect, as diffusers' examples choose them.

    Args:
        image: the image.
        area: most pixels of a frame; exceeded only where a side is one step long.
        step: what height and width must be multiples of.
    """
    aspect = image.height / image.width
    sides = math.sqrt(area * aspect), math.sqrt(area / aspect)
    height, width = (max(int(side + 1e-6) // by * by, by) for side, by in zip(sides, step, strict=True))
    return height, width
