# SPDX-License-Identifier: Apache-2.0
"""Settings, and records of JSON files, as pydantic models whose errors are one sentence: key, value, rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

_SHOWN = 60  # characters of a value in a message
Content = TypeVar("Content")


class Settings(BaseModel):
    """Base of the numbers that a user chooses; immutable, finite, and without names that nobody reads.

    Raises:
        ValueError: One is not what it should be; the message is that of `first_error`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ValueError(first_error(error)) from error


class Record(BaseModel):
    """Base of what stands in a JSON file; immutable, finite, of the very types, other keys are left aside."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


def read_json(file: Path, kind: type[Content], refuse: Callable[[str], Exception]) -> Content:
    """Reads a JSON file, in UTF-8, with or without a byte order mark.

    Args:
        file: The file.
        kind: What it holds: a `Record`, or a list or a dict of them.
        refuse: Makes the error from what is wrong with the file, to which it adds which file it is, and the remedy.

    Raises:
        Exception: The one that `refuse` makes: the file is no JSON, or a value of it breaks a rule.
        OSError: The file cannot be read.
    """
    content = file.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        raise refuse(first_error(error)) from error


def first_error(error: ValidationError) -> str:
    """Says what the first error of a validation is, e.g. "samples.3.name 5: must be a valid string"."""
    details = error.errors(include_url=False)[0]
    rule = details["msg"].removeprefix("Value error, ").replace("Input should", "must", 1)
    key = ".".join(map(str, details["loc"]))
    match details["type"]:
        case "json_invalid":
            return f"is not valid JSON ({rule.removeprefix('Invalid JSON: ')})"
        case "missing":
            return f"{key}: is missing"
        case "extra_forbidden":
            return f"{key}: is not known"
        case "value_error" if not key:
            return rule
    value = repr(details["input"])
    shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}..."
    return f"{key or 'content'} {shown}: {rule}"
