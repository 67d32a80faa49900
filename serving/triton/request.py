# SPDX-License-Identifier: Apache-2.0
"""A request of the Triton model, read from its tensors: the fields of an HTTP request and the bytes of its images."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from PIL import Image

from vorta_trt.serving.image_bytes import SentImage
from vorta_trt.serving.triton.tensors import IMAGES, INPUTS, PARAMETERS, STRING, Tensor
from vorta_trt.serving.video_request import IMAGE_FIELDS, RequestError, VideoRequest, parse_request, shown

ELSEWHERE = {"model": "the model of the request", "n": "one request for each video"}  # and what to use instead
_IMAGE_OF = {field: name for name, own in IMAGES.items() for field, argument in IMAGE_FIELDS.items() if argument == own}
ELSEWHERE |= _IMAGE_OF


def read_request(tensor: Callable[[str], Any], most_pixels: int) -> tuple[VideoRequest, dict[str, Image.Image]]:
    """The fields of a request, and its images by the pipeline's argument.

    Args:
        tensor: Gives an input as a NumPy array by name, None for one that the request lacks.
        most_pixels: Largest number of pixels that an image may have.

    Raises:
        RequestError: An input does not have exactly one element, is no text, JSON or image where it must be one, or has
            a value that is refused.
    """
    given = {each.name: _element(each, value) for each in INPUTS if (value := tensor(each.name)) is not None}
    values = _parameters(given.get(PARAMETERS, "{}"))
    for each in INPUTS:
        if each.field is not None and each.name in given:
            if each.field in values:
                raise RequestError(
                    f"{each.name}: {each.field} stands in {PARAMETERS}, too; give one of them", each.field
                )
            values[each.field] = given[each.name]
    request = parse_request(values)
    images = {
        argument: SentImage(name, given[name], most_pixels).load() for name, argument in IMAGES.items() if name in given
    }
    return request, images


def in_tensors(error: RequestError) -> str:
    """The message of a refusal, which names the model's input in place of the field."""
    names = {each.field: each.name for each in INPUTS if each.field is not None}
    names |= _IMAGE_OF
    message, field = str(error), error.field
    if field not in names or not message.startswith(field):
        return message
    return names[field] + message.removeprefix(field)


def _element(tensor: Tensor, value: Any) -> Any:
    """The one element of an input: a number, text, or the bytes of an image."""
    if value.size != 1:
        raise RequestError(f"{tensor.name} of shape {list(value.shape)}: must hold one element; use [1]", tensor.name)
    element = value.reshape(-1)[0]
    if tensor.kind != STRING:
        return element.item()
    data = element.encode("utf-8", "surrogatepass") if isinstance(element, str) else bytes(element)
    if tensor.name in IMAGES:
        return data
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise RequestError(f"{tensor.name}: is no UTF-8 text ({error}); give it in UTF-8", tensor.name) from None


def _parameters(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{PARAMETERS}: is no JSON ({shown(str(error))}); give a JSON object", PARAMETERS) from None
    if not isinstance(values, dict):
        raise RequestError(f"{PARAMETERS} {shown(text)}: must be a JSON object", PARAMETERS)
    for name in values.keys() & ELSEWHERE.keys():
        raise RequestError(f"{PARAMETERS}: {name} has no place there; use {ELSEWHERE[name]}", name)
    return values
