# SPDX-License-Identifier: Apache-2.0
"""Images of a request, as bytes from an untrusted client."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from vorta_trt.serving.video_request import RequestError, shown

FORMATS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}  # Pillow's formats: file suffixes


class SentImage:
    """An image that a client sent. Its header is read at once; `load` decodes its pixels, which takes time and memory.

    Args:
        field: Field of the request, for error messages.
        content: Bytes of an image file in one of `FORMATS`.
        most_pixels: Largest number of pixels that the image may have.

    Attributes:
        content: Bytes of the image file, as given.
        suffix: File suffix of the image's format, without a dot.

    Raises:
        RequestError: The file has another format, its header is damaged, or the image is too large.
    """

    def __init__(self, field: str, content: bytes, most_pixels: int) -> None:
        self.field, self.content = field, content
        with self._refusing():
            self._image = Image.open(io.BytesIO(content), formats=list(FORMATS))
            self.suffix = FORMATS[str(self._image.format)]
            width, height = self._image.size
            if width * height > most_pixels:
                raise RequestError(
                    f"{field}: has {width}x{height} pixels, and no more than {most_pixels} are taken; make it smaller",
                    field,
                    "image_too_large",
                )

    def load(self) -> Image.Image:
        """The image, decoded.

        Raises:
            RequestError: The image is damaged.
        """
        with self._refusing():
            self._image.load()
        return self._image

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        field = self.field
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow warns of harmless things, or of images that are refused here
                yield
        except RequestError:
            raise
        except Image.DecompressionBombError:  # Pillow finds it in the header already
            raise RequestError(f"{field}: has far too many pixels; make it smaller", field, "image_too_large") from None
        except UnidentifiedImageError:
            raise RequestError(f"{field}: is no PNG, JPEG or WebP image; send one", field, "invalid_image") from None
        except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
            raise RequestError(
                f"{field}: is damaged ({shown(str(error))}); save it again", field, "invalid_image"
            ) from None
