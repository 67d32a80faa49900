# SPDX-License-Identifier: Apache-2.0
"""Reading the body of `POST /v1/videos`: JSON or a form, with images as uploads or data URLs.

Nothing that a client sends becomes a path: an image's file is named by its argument and its format.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from vorta_trt.serving.api_errors import ApiError
from vorta_trt.serving.image_bytes import SentImage
from vorta_trt.serving.remote_images import RemoteImages
from vorta_trt.serving.video_request import IMAGE_FIELDS, RequestError, VideoRequest, parse_request, shown

MOST_FIELDS = 200
_NESTED = re.compile(r"([A-Za-z_0-9]+)\[([A-Za-z_0-9]*)\]")


@dataclass(frozen=True)
class Body:
    """The body of a request, parsed.

    Attributes:
        request: Fields of the request.
        images: Images by the pipeline's argument, not decoded yet.
    """

    request: VideoRequest
    images: Mapping[str, SentImage]


async def read_values(request: Request, most_bytes: int) -> tuple[dict[str, Any], bool]:
    """The fields of a body as they were sent, uploads as bytes; and whether the body is a form.

    Raises:
        ApiError, RequestError: The body cannot be read.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        return await _read_form(request, most_bytes), True
    if kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(
            415,
            f"Content-Type {shown(kind)}: must be application/json or multipart/form-data",
            "unsupported_media_type",
        )
    try:
        values = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"body: is no JSON ({shown(str(error))}); send a JSON object", None, "invalid_json"
        ) from None
    if not isinstance(values, dict):
        raise RequestError("body: must be a JSON object", None, "invalid_json")
    return values, False


def read_body(values: Mapping[str, Any], form: bool, most_pixels: int, remote: RemoteImages | None = None) -> Body:
    """Checks fields, and images by their headers. It takes a while if images are fetched from other servers.

    Args:
        values: Fields that `read_values` returned.
        form: Whether the body is a form, as `read_values` returned.
        most_pixels: Largest number of pixels that an image may have.
        remote: Fetches images from other servers; None: they are refused.

    Raises:
        RequestError: A field or an image is refused; the error names the field.
    """
    uploads = {name: value for name, value in values.items() if isinstance(value, bytes)}
    if unknown := sorted(uploads.keys() - IMAGE_FIELDS.keys()):
        raise RequestError(
            f"{shown(unknown[0])}: is no field for a file; use input_reference", unknown[0], "unknown_field"
        )
    request = parse_request({name: value for name, value in values.items() if name not in uploads}, form=form)
    images: dict[str, SentImage] = {}
    for field, argument in IMAGE_FIELDS.items():
        content = uploads.get(field)
        if content is None and (given := getattr(request, field)) is not None:
            content = _referenced(field, given, remote)
        if content is None:
            continue
        if argument in images:
            raise RequestError(f"{field}: input_reference is given, too; give one of them", field)
        images[argument] = SentImage(field, content, most_pixels)
    return Body(request, images)


class _WholeForm(MultiPartParser):
    """Refuses a multipart body without its last boundary; else a truncated body would silently lose its last part."""

    _whole = False

    def on_end(self) -> None:
        self._whole = True

    async def parse(self) -> FormData:
        self.stream = self._to_the_end(self.stream)
        return await super().parse()  # the base class closes its files when the stream raises

    async def _to_the_end(self, stream: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        async for chunk in stream:
            yield chunk
        if not self._whole:
            raise MultiPartException("its last boundary is missing; send all of it")


async def _parse_form(request: Request, most_bytes: int) -> FormData:
    if not request.headers["content-type"].strip().lower().startswith("multipart/"):
        return await request.form(max_fields=MOST_FIELDS, max_part_size=most_bytes)
    parser = _WholeForm(
        request.headers,
        request.stream(),
        max_files=len(IMAGE_FIELDS),
        max_fields=MOST_FIELDS,
        max_part_size=most_bytes,
    )
    return await parser.parse()


async def _read_form(request: Request, most_bytes: int) -> dict[str, Any]:
    values: dict[str, Any] = {}
    try:
        form = await _parse_form(request, most_bytes)
    except (HTTPException, MultiPartException, UnicodeDecodeError, ValueError, KeyError) as error:
        told = error.detail if isinstance(error, HTTPException) else str(error)
        raise RequestError(f"body: is no form ({shown(told)})", None, "invalid_form") from None
    try:
        for name, value in form.multi_items():
            content = await value.read() if isinstance(value, UploadFile) else value
            nested = _NESTED.fullmatch(name)
            if nested is not None and nested[2]:
                outer = values.setdefault(nested[1], {})
                if not isinstance(outer, dict) or nested[2] in outer:
                    raise RequestError(f"{shown(name)}: is given twice; give it once", nested[1])
                outer[nested[2]] = content
            elif nested is not None:
                several = values.setdefault(nested[1], [])
                if not isinstance(several, list):
                    raise RequestError(f"{shown(name)}: {nested[1]} is given, too; give one of them", nested[1])
                several.append(content)
            elif name in values:
                raise RequestError(f"{shown(name)}: is given twice; give it once", name)
            elif content != "" or name == "prompt":  # a browser sends empty fields, too
                values[name] = content
    finally:
        await form.close()  # removes its temporary files
    return values


def _referenced(field: str, given: Any, remote: RemoteImages | None) -> bytes:
    url = given
    if isinstance(given, dict):
        if set(given) != {"image_url"} or not isinstance(given["image_url"], str):
            raise RequestError(
                f'{field}: must be a data URL, or {{"image_url": a data URL}}; there are no files', field
            )
        url = given["image_url"]
    if remote is not None and remote.may_fetch(url):
        return remote.fetch(url, field)
    if not url.startswith("data:"):
        raise RequestError(
            f"{field} {shown(url)}: this server opens neither URLs nor paths; upload the image, or send it as "
            f"data:image/png;base64,...",
            field,
            "url_not_allowed",
        )
    head, comma, data = url.partition(",")
    try:
        if not comma:
            raise ValueError("no comma")
        if head.endswith(";base64"):
            return base64.b64decode(unquote_to_bytes(data), validate=True)
        return unquote_to_bytes(data)
    except (ValueError, binascii.Error) as error:
        raise RequestError(f"{field}: is no data URL ({error}); send data:image/png;base64,...", field) from None
