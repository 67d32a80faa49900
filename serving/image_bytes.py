# SPDX-License-Identifier: Apache-2.0
"""Images that come with a request, as bytes from someone who is not trusted."""

from __future__ import annotations

import io
import warnings

from PIL import Image, UnidentifiedImageError

from vorta_trt.serving.video_request import RequestError, shown

FORMATS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}  # and the suffixes of their files


def read_image_bytes(field: str, content: bytes, most_pixels: int) -> tuple[Image.Image, str]:
    """An image, decoded, and the suffix of its format; its size is looked at before a pixel is decoded.

    Args:
        field: Of the request, for errors.
        content: Of a file in one of `FORMATS`.
        most_pixels: That it may have.

    Raises:
        RequestError: It is something else, damaged, or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what is refused here, or harmless
            image = Image.open(io.BytesIO(content), formats=list(FORMATS))
            width, height = image.size
            if width * height > most_pixels:
                raise RequestError(
                    f"{field}: has {width}x{height} pixels, and no more than {most_pixels} are taken; make it smaller",
                    field,
                    "image_too_large",
                )
            image.load()
    except RequestError:
        raise
    except Image.DecompressionBombError:  # said by the header already
        raise RequestError(f"{field}: has far too many pixels; make it smaller", field, "image_too_large") from None
    except UnidentifiedImageError:
        raise RequestError(f"{field}: is no PNG, JPEG or WebP image; send one", field, "invalid_image") from None
    except Exception as error:  # Pillow's decoders raise nearly everything on damaged files
        raise RequestError(
            f"{field}: is damaged ({shown(str(error))}); save it again", field, "invalid_image"
        ) from None
    return image, FORMATS[str(image.format)]
