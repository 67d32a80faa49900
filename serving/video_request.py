# SPDX-License-Identifier: Apache-2.0
"""`VideoRequest`: the fields of `POST /v1/videos`: those of OpenAI's video API, and all of `SamplingParams`.

    request = parse_request({"prompt": "a cat", "size": "832x480", "seed": 1, "cache": "tea"})
    request.params({"num_inference_steps": 20})         # SamplingParams, with the model's defaults

What depends on the model (sizes, frame counts, LoRA files) is checked by `Catalogue.accept`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field, ValidationError, field_validator

from vorta_trt.plugins.errors import VortaError
from vorta_trt.runtime.sampling.params import SamplingParams

MOST_LETTERS = 20_000  # of a prompt; text encoders cut it at a few hundred words
# Fields of images, and the pipeline's argument that each is; the first one of an argument names it in errors.
IMAGE_FIELDS = {"input_reference": "image", "reference_url": "image", "last_reference": "last_image"}
_SAMPLING = frozenset(SamplingParams.model_fields)


class RequestError(VortaError, ValueError):
    """A request that is refused.

    Args:
        message: What was given, which rule it breaks, what to do.
        field: Name of the field; None for the request as a whole.
        code: A word for programs.
    """

    def __init__(self, message: str, field: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.field, self.code = field, code


class VideoRequest(SamplingParams):
    """A request for videos, whatever the model."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    prompt: str = Field(min_length=1, max_length=MOST_LETTERS)
    """What the video shows."""
    negative_prompt: str | None = Field(default=None, max_length=MOST_LETTERS)
    """What classifier-free guidance leads away from; null is the empty prompt."""
    model: str | None = None
    """Which of the server's models; null is its first."""
    size: str | None = Field(default=None, pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$")
    """Width and height in pixels, as 832x480."""
    width: int | None = Field(default=None, ge=1, le=99_999)
    """Width in pixels, in the place of `size`."""
    height: int | None = Field(default=None, ge=1, le=99_999)
    """Height in pixels, in the place of `size`."""
    num_frames: int | None = Field(default=None, ge=1, le=99_999)
    """Frames of the video."""
    seconds: float | None = Field(default=None, gt=0, le=3600)
    """The length of the video in seconds, at the model's own frame rate, in the place of `num_frames`."""
    fps: float | None = Field(default=None, ge=0.1, lt=1000)
    """Frames per second at which the video is written; null is the model's own."""
    n: int = Field(default=1, ge=1, le=64)
    """How many videos, with the seeds `seed`, `seed + 1` and so on."""
    lora: tuple[str, ...] | None = None
    """Names of the LoRA files that the model must have been built with; null takes the model as it is."""
    input_reference: str | dict[str, Any] | None = None
    """The image that the video begins with: an upload, or a data URL, also as {"image_url": "data:..."}."""
    reference_url: str | None = None
    """The image that the video begins with, as a data URL, in the place of `input_reference`."""
    last_reference: str | dict[str, Any] | None = None
    """The image that the video ends with, for models that take one; an upload or a data URL."""

    @field_validator("lora", mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("prompt")
    @classmethod
    def _says_something(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must have a letter that is no blank")
        return value

    def params(self, defaults: Mapping[str, Any] | None = None) -> SamplingParams:
        """The sampling settings of the request, with a model's defaults for what it leaves out.

        Raises:
            ValidationError: The defaults and the given values contradict each other.
        """
        given = {name: getattr(self, name) for name in self.model_fields_set & _SAMPLING}
        given = {name: value for name, value in given.items() if value is not None or name == "cache"}
        if self.gives_steps:
            given.pop("num_inference_steps", None)  # given timesteps or sigmas decide the number of steps
        return SamplingParams(**{**(defaults or {}), **given})


def parse_request(values: Mapping[str, Any], *, form: bool = False) -> VideoRequest:
    """Parses the fields of a JSON body or of a form.

    Args:
        values: Values by the field's name.
        form: Whether all values are text, with lists and objects as JSON.

    Raises:
        RequestError: The first problem, with the field's name.
    """
    given = {name: _of_form(value) for name, value in values.items()} if form else dict(values)
    try:
        return VideoRequest.model_validate(given)
    except ValidationError as error:
        raise refused(error, VideoRequest) from None


def refused(error: ValidationError, model: type[SamplingParams] = SamplingParams) -> RequestError:
    """The problem that pydantic found, as an error that names the field."""
    problem = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in problem["loc"]) or None
    if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
        known = ", ".join(sorted(model.model_fields))
        return RequestError(f"{shown(field)}: is no field of a request; there are {known}", field, "unknown_field")
    if problem["type"] == "missing" and len(problem["loc"]) == 1:
        return RequestError(f"{field}: is missing; give it", field, "missing_field")
    message = as_fields(str(problem["msg"]).removeprefix("Value error, "))
    if field is None:
        return RequestError(message, named_field(message))
    return RequestError(f"{shown(field)} {shown(problem['input'])}: {message}", field)


def named_field(message: str) -> str | None:
    """The field with which a message of the sampling settings begins, or None."""
    if message.startswith("TeaCache"):
        return "cache"
    name = re.split(r"[ :.]", message, maxsplit=1)[0]
    return name if name in SamplingParams.model_fields else None


def as_fields(message: str) -> str:
    """Replaces the command line's flags in a message by the request's fields."""

    def field(flag: re.Match[str]) -> str:
        name = flag[1].replace("-", "_")
        if name.startswith("cache_"):
            return f"cache.{name.removeprefix('cache_')}"
        return name if name in SamplingParams.model_fields else flag[0]

    message = message.replace("--cache-coefficients none", "cache.coefficients [1, 0] with cache.threshold")
    message = message.replace("--cache-coefficients NAME", "cache.model NAME")
    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", field, message)


def shown(value: Any) -> str:
    """A client's value for an error message: on one line, and short."""
    text = printable(value if isinstance(value, str) else repr(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


def printable(text: str) -> str:
    """A text whose control characters are written out."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def _of_form(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value
